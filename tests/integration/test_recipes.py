"""The recipes: they hold the papers' numbers, parse, build, and train a step on a tiny model and tiny data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from transformers import AutoTokenizer

from lion_lightning import PolicySpec
from lion_lightning.cli import main
from lion_lightning.data.decontamination import Decontamination
from lion_lightning.data.packing.best_fit import Unpacked
from lion_lightning.data.sources.source import Source
from lion_lightning.models.tokenizer import read_template
from lion_lightning.tools.train.lightning_cli import build_cli
from tests import tiny
from tests.integration.recipes import NAMES, PAPER, RECIPES, ROOT, arguments, name_of, numbers, read, sampling
from tests.marks import exhaustive, slow_but

TEMPLATE = RECIPES / "chatml_with_bos.jinja"

# --- what the papers say

COLUMBIA = (
    "OpenHermes-2.5",
    "MetaMathQA",
    "orca-math-word-problems-200k",
    "ruozhiba_en",
    "Magicoder-Evol-Instruct-110K",
    "SlimOrca-Dedup",
)
H4 = ("ultrachat_200k", "capybara", "deita-10k-v0-sft")
SFT = {
    f"{owner}/{name}": ("train_sft", 1.0)
    for owner, names in (("Columbia-NLP", COLUMBIA), ("HuggingFaceH4", H4))
    for name in names
}
DPO_SOURCES = {
    "distilabel-capybara-dpo-7k-binarized": ("train", 1.0),
    "distilabel-intel-orca-dpo-pairs_cleaned": ("train", 1.0),
    "UltraFeedback_binarized": ("train_prefs", 1.0),
    "py-dpo-v0.1": ("train", 1.0),
    "HelpSteer": ("train", 1.0),
    "PKU-SafeRLHF": ("train", 0.1),
}
LLAMA_DPO = {f"Columbia-NLP/DPO-{name}": rest for name, rest in (DPO_SOURCES | {"Nectar": ("train", 1.0)}).items()}
GEMMA_DPO = LLAMA_DPO | {
    "Columbia-NLP/DPO-Nectar": ("train", 0.25),
    "Columbia-NLP/DPO-tldr-summarisation-preferences": ("train", 0.1),
}
SOURCES = {
    "lion_gemma_2b/sft": SFT,
    "lion_gemma_2b/dpo": GEMMA_DPO,
    "lion_gemma_2b/online_dpo": {"Columbia-NLP/DPO-Nectar": ("train", 0.3)},
    "lion_llama3_8b/sft": SFT,
    "lion_llama3_8b/dpo": LLAMA_DPO,
    "lion_llama3_8b/online_dpo": {},
    "tulu3/dpo": {"allenai/llama-3.1-tulu-3-8b-preference-mixture": ("train", 1.0)},
    "tulu3/rlvr": {},
    "tulu3/sft": {"allenai/tulu-3-sft-mixture": ("train", 1.0)},
}
STARTS = {
    "lion_gemma_2b/sft": "google/gemma-2b",
    "lion_gemma_2b/dpo": "runs/lion_gemma_2b/sft/export",
    "lion_gemma_2b/online_dpo": "runs/lion_gemma_2b/dpo/export",
    "lion_llama3_8b/sft": "meta-llama/Meta-Llama-3-8B",
    "lion_llama3_8b/dpo": "runs/lion_llama3_8b/sft/export",
    "lion_llama3_8b/online_dpo": "runs/lion_llama3_8b/dpo/export",
    "tulu3/dpo": "allenai/Llama-3.1-Tulu-3-8B-SFT",
    "tulu3/rlvr": "allenai/Llama-3.1-Tulu-3-8B-DPO",
    "tulu3/sft": "meta-llama/Llama-3.1-8B",
}


def test_every_recipe_is_held_to_its_paper() -> None:
    assert sorted(PAPER) == sorted(SOURCES) == sorted(STARTS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_training_numbers_are_the_papers(name: str) -> None:
    config = read(name)
    assert config["trainer"]["devices"] == 4
    assert numbers(config) == PAPER[name]
    if PAPER[name].beta is not None:
        assert name_of(arguments(config, "model")["reference"]) == "CachedReference"  # of the stage's own start
        assert arguments(config, "data")["packing"].endswith(".Unpacked")  # a pair a row, or rows a step are not pairs


@pytest.mark.parametrize("name", NAMES)
def test_the_data_are_the_papers(name: str) -> None:
    config = read(name)
    listed = arguments(config, "data").get("sources", [])
    assert {source["path"]: (source["split"], source["fraction"]) for source in listed} == SOURCES[name]
    assert len(listed) == len(SOURCES[name])
    assert arguments(config, "model")["policy"]["path"] == STARTS[name]


@pytest.mark.parametrize(
    ("name", "mask", "rows", "tokenizer"),
    [
        ("lion_gemma_2b/sft", "none", [106, 107], "philschmid/gemma-tokenizer-chatml"),
        ("lion_llama3_8b/sft", "assistant", 128000, "NousResearch/Hermes-2-Theta-Llama-3-8B"),
    ],
)
def test_the_masks_of_sft_are_the_papers(name: str, mask: str, rows: Any, tokenizer: str) -> None:
    config = read(name)
    data, model = arguments(config, "data"), arguments(config, "model")
    assert data["mask"] == mask
    assert data["min_supervised_share"] == pytest.approx(1 - 0.9)
    assert data["max_length"] * PAPER[name].rows_a_step == 262_144  # tokens a step
    assert model["policy"]["trainable_rows"] == rows
    assert model["tokenizer"]["path"] == tokenizer


@pytest.mark.parametrize(("name", "share"), [("lion_gemma_2b/online_dpo", 0.1), ("lion_llama3_8b/online_dpo", None)])
def test_the_round_is_the_papers(name: str, share: float | None) -> None:
    settings = sampling(read(name))
    prompts = [{"path": "Columbia-NLP/DPO-UltraFeedback_binarized", "split": "train_prefs"}]
    assert arguments(read(name), "data")["prompts"] == prompts
    assert settings["num_samples"] == 5
    assert settings["prompts_per_round"] == share
    assert settings["pairing"] == "lion_lightning.data.formats.pairing.BestWorst"
    assert name_of(settings["sampler"]) == "VLLMSampler"
    assert arguments(settings, "sampler")["sampling"] == {"temperature": 0.8, "max_new_tokens": 2048}
    assert arguments(settings, "sampler")["max_model_len"] == PAPER[name].max_prompt_length + 2048  # type: ignore[operator]
    assert name_of(settings["judge"]) == "PairRMJudge"


def test_the_sum_and_the_sequences_of_tulus_sft_are_the_papers() -> None:
    config = read("tulu3/sft")
    data = arguments(config, "data")
    assert arguments(config, "model")["reduction"] == "sum"
    assert (config["seed_everything"], "gradient_clip_val" in config["trainer"]) == (123, False)
    assert data["mask"] == "assistant"
    assert data["packing"].endswith(".Unpacked")  # or rows a step are not sequences


def test_the_decontamination_that_tulus_sft_offers_is_a_config() -> None:
    text = (RECIPES / "tulu3" / "sft.yaml").read_text("utf-8")
    commented = text.partition("    # document_filters:\n")[2].partition("\ntrainer:")[0]
    (offered,) = yaml.safe_load("\n".join(line.replace("    # ", "", 1) for line in commented.splitlines()))
    assert offered["class_path"] == f"{Decontamination.__module__.rpartition('.')[0]}.{Decontamination.__name__}"
    settings = offered["init_args"]
    rule = Decontamination(**settings | {"benchmarks": [Source(**one) for one in settings["benchmarks"]]})
    assert (rule.ngram, rule.overlap, rule.warn_above) == (8, 0.5, 0.02)


def test_the_round_of_tulus_rlvr_is_that_of_its_command() -> None:
    config = read("tulu3/rlvr")
    loss, settings, data = arguments(config, "model", "init_args", "loss"), sampling(config), arguments(config, "data")
    assert loss == {"beta": 0.01, "clip_low": 0.2, "clip_high": 0.2, "eps": 1e-8}
    assert (settings["num_samples"], settings["prompts_per_round"]) == (16, 48)
    assert settings["prompts_per_round"] == 2 * PAPER["tulu3/rlvr"].rows_a_step  # two steps a round
    assert arguments(settings, "sampler")["sampling"] == {"temperature": 1.0, "max_new_tokens": 2048}
    assert [name_of(one) for one in settings["shaping"]] == ["UnfinishedScore"]
    assert settings["shaping"][0]["init_args"] == {"score": 0.0}
    judge = arguments(settings, "judge")
    assert judge["reward"] == 10
    verifiers = judge["verifier"]["init_args"]["verifiers"]
    assert {name: name_of(one) for name, one in verifiers.items()} == {
        "gsm8k": "MathAnswer",
        "MATH": "MathAnswer",
        "ifeval": "Instructions",
    }
    assert {one["init_args"]["column"] for one in verifiers.values()} == {"ground_truth"}
    assert data["keep_equal"] is True
    assert data["row_length"] == 2048 + 16 * 2048
    assert config["trainer"]["max_epochs"] == (29_946 - 32) // 48  # all prompts but the monitor ones, once


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_a_gpu_is_sharded(name: str) -> None:
    """By FSDP2: FSDPStrategy refuses to train chosen rows of the embeddings."""
    strategy = name_of(read(name)["trainer"]["strategy"])
    assert strategy == ("DDPStrategy" if "2b" in name else "FSDP2Strategy")


# --- the same, tiny


TRAINED = (
    *("lion_gemma_2b/sft", "lion_gemma_2b/online_dpo"),
    *("tulu3/sft", "tulu3/dpo", "tulu3/rlvr"),
)
"""Recipes that train among the slow tests; the others differ from these in numbers alone."""
BUILT = "tulu3/dpo"
"""The recipe that is built by default; the others are among the slow tests."""


def say(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


ROWS: dict[str, list[dict[str, Any]]] = {
    "sft": [{"messages": [say("user", f"w{n} w{n + 1}"), say("assistant", f"w{n + 2}")]} for n in range(3, 35)],
    "dpo": [
        {
            "prompt": f"w{n} w{n + 1}",
            "chosen": [say("user", f"w{n} w{n + 1}"), say("assistant", f"w{n + 2}")],
            "rejected": [say("user", f"w{n} w{n + 1}"), say("assistant", f"w{n + 3} w{n}")],
        }
        for n in range(3, 60)
    ],
}
ROWS["online_dpo"] = ROWS["dpo"]
AT_MOST = {"func_name": "validate_word_constraint", "N": 2, "quantifier": "at most", "word": None}
TRUTHS = {"gsm8k": "4", "MATH": r"\frac{1}{2}", "ifeval": json.dumps(AT_MOST)}
ROWS["rlvr"] = [
    {
        "messages": [say("user", f"w{n} w{n + 1}")],
        "ground_truth": TRUTHS[kind],
        "dataset": kind,
        "constraint_type": "",
        "constraint": "",
    }
    for n, kind in enumerate([*TRUTHS] * 10, 3)
]
MINE = '''
class Longest:
    """Random weights never please PairRM, so here more is better."""

    def score(self, prompts, answers):
        return [[len(text.split()) for text in texts] for texts in answers]
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the recipes, a tiny model and tiny data."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    torch.manual_seed(0)
    PolicySpec(config=tiny.shallow(max_position_embeddings=8192)).build().causal_lm.save_pretrained(tmp_path / "model")
    tiny.tokenizer_folder(tmp_path / "model")
    for stage, rows in ROWS.items():
        (tmp_path / f"{stage}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my_recipe_judge.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tiny_arguments(name: str) -> list[str]:
    """A recipe with the model, the data and the machine swapped; nothing else."""
    config, stage = read(name), Path(name).name
    source = json.dumps([{"path": f"{stage}.jsonl", "split": "train"}])  # a list of one keeps what it is silent about
    swaps = ["model.policy.path=model", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.strategy=auto"]
    swaps += ["trainer.precision=32-true", "trainer.enable_progress_bar=false"]
    model, data = arguments(config, "model"), arguments(config, "data")
    swaps += ["model.tokenizer.path=model"] if "tokenizer" in model else []
    swaps += ["model.policy.trainable_rows=[1, 2]"] if "trainable_rows" in model["policy"] else []
    swaps += [f"data.{key}={source}" for key in ("sources", "prompts") if data.get(key)]
    swaps += ["data.validation=null"] if "validation" in data else []
    return ["-c", f"configs/recipes/{name}.yaml", *(f"--{swap}" for swap in swaps)]


@pytest.mark.exhaustive  # those that build or train below have been parsed
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_parses(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", *tiny_arguments(name), "--print_config"])
    assert stop.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)
    assert arguments(printed, "model")["policy"]["path"] == "model"
    assert numbers(printed) == PAPER[name]


@pytest.mark.parametrize("name", slow_but(NAMES, BUILT))
def test_a_recipe_builds(name: str, folder: Path) -> None:
    cli = build_cli(tiny_arguments(name), run=False)
    assert getattr(getattr(cli.model, "loss", None), "beta", None) == PAPER[name].beta
    assert cli.trainer.max_epochs == PAPER[name].epochs


def online(name: str) -> str:
    """An online recipe with another sampler and judge, and rounds as small as the data."""
    config = read(name)
    settings = sampling(config)
    drawn = arguments(settings, "sampler")["sampling"] | {"max_new_tokens": 3}
    settings["sampler"]["class_path"] = "lion_lightning.sampling.TransformersSampler"
    settings["sampler"]["init_args"] = {"sampling": drawn}
    settings |= {"keep_unfinished": True, "monitor_prompts": 2}
    if name_of(settings["judge"]) == "PairRMJudge":
        settings["judge"] = {"class_path": "my_recipe_judge.Longest"}
    Path("online.yaml").write_text(yaml.safe_dump(config))
    return "online.yaml"


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """The trainers that were run."""
    trainers: list[Trainer] = []
    original = Trainer.fit

    def fit(self: Trainer, *positional: Any, **named: Any) -> None:
        trainers.append(self)
        original(self, *positional, **named)

    monkeypatch.setattr(Trainer, "fit", fit)
    return trainers


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TRAINED, *exhaustive(*sorted({*NAMES} - {*TRAINED}))])
def test_a_recipe_trains_a_step(name: str, folder: Path, fits: list[Trainer]) -> None:
    swapped = tiny_arguments(name)
    if "prompts" in arguments(read(name), "data"):
        swapped[1] = online(name)
    assert main(["fit", *swapped, "--trainer.max_steps=1"]) == 0
    assert fits[0].global_step == 1
    loss = fits[0].callback_metrics["train/loss"].item()
    if PAPER[name].loss.startswith("Sigmoid") and PAPER[name].beta is not None:
        assert loss == pytest.approx(0.6931472, abs=1e-4)  # ln 2: the policy is its reference
    exported = folder / "runs" / name / "export"
    assert (exported / "model.safetensors").is_file()
    own = "chat_template" in arguments(read(name), "model").get("tokenizer", {})
    template = read_template(str(TEMPLATE) if own else "chatml")
    assert AutoTokenizer.from_pretrained(exported).chat_template == template


def test_a_micro_batch_of_unpacked_rows_is_whole_pairs_without_padding(folder: Path) -> None:
    """What the recipes' "pairs a step" rests on."""
    cli = build_cli(tiny_arguments("lion_gemma_2b/dpo"), run=False)
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    assert isinstance(cli.datamodule.packing, Unpacked)
    batch = next(iter(cli.datamodule.train_dataloader()))
    assert len(batch.sample_indices) == 4
    assert len(batch.segments) == 3 * 4
    assert len(batch.input_ids) == sum(segment.length for segment in batch.segments)


def test_the_template_starts_with_bos_and_trains_what_the_assistant_says(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.tokenizer_folder(tmp_path))
    tokenizer.bos_token = "<unk>"
    tokenizer.chat_template = read_template(str(TEMPLATE))
    turns = [say("user", "w3"), say("assistant", "w4")]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "<unk><|im_start|>user\nw3<|im_end|>\n<|im_start|>assistant\nw4<|im_end|>\n"
    asked = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "<unk><|im_start|>user\nw3<|im_end|>\n<|im_start|>assistant\n"
