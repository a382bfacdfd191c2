"""A reward model from the command line: the shipped config trains and exports it, and a judge gives the same scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lion_lightning import PreferenceDataModule, RewardModule, Source, TokenizerSpec
from lion_lightning.cli import main
from lion_lightning.data.formats.pairing import AllPairs
from lion_lightning.judges import RewardModelJudge
from lion_lightning.rollouts.rounds import find_rounds
from lion_lightning.types import Prompt
from tests.demo import copy_demo, copy_start
from tests.integration.killed_runs import assert_a_killed_run_ends_equal
from tests.marks import exhaustive, slow_but

ROOT = Path(__file__).parents[2]
REWARD = ROOT / "configs" / "reward.yaml"
SMALL = ["--trainer.enable_progress_bar=false", "--trainer.logger=false", "--trainer.num_sanity_val_steps=0"]
ONE_STEP = [*SMALL, "--trainer.max_steps=1", "--trainer.callbacks=[]", "--trainer.enable_checkpointing=false"]
VALIDATION = Path("runs/demo/preferences_validation.jsonl")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small demo task, and random weights where the config expects those of stage 1."""
    copy_demo(tmp_path / "runs" / "demo", preferences=60)
    copy_start(tmp_path / "runs" / "sft" / "export")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def conversations() -> list[list[dict[str, str]]]:
    """Of the validation rows, each prompt with its chosen and then its rejected answer."""
    rows = [json.loads(line) for line in VALIDATION.read_text("utf-8").splitlines()]
    return [row["prompt"] + row[side] for row in rows for side in ("chosen", "rejected")]


def judged(model: str, turns: list[list[dict[str, str]]]) -> list[float]:
    judge = RewardModelJudge(model)
    judge.open(torch.device("cpu"))
    prompts = [Prompt("", messages=tuple(each[:-1])) for each in turns]
    return [scores[0] for scores in judge.score(prompts, [[each[-1]["content"]] for each in turns])]


def in_training(model: str) -> dict[tuple[int, ...], float]:
    """Reward of each conversation of the validation rows by the module, by its tokens."""
    data = PreferenceDataModule([Source(str(VALIDATION))], TokenizerSpec(model), max_length=128, row_length=64)
    data.prepare_data()
    data.setup()
    module = RewardModule(model)
    module.configure_model()
    found: dict[tuple[int, ...], float] = {}
    for batch in data.train_dataloader():
        with torch.inference_mode():
            rewards = module.eval().reward_model(batch)
        for answer, reward in zip(batch.answers, rewards.tolist(), strict=True):
            spans = [batch.segments[batch.segments[answer].parent], batch.segments[answer]]
            ids = torch.cat([batch.input_ids[span.start : span.stop] for span in spans])
            found[tuple(ids.tolist())] = reward
    return found


def test_the_shipped_config_trains_a_judge_with_the_scores_of_training(folder: Path) -> None:
    assert main(["fit", "-c", str(REWARD), *SMALL, "--trainer.max_steps=2"]) == 0
    export = "runs/reward/export"
    turns = conversations()
    tokenizer: Any = AutoTokenizer.from_pretrained(export)
    model = AutoModelForSequenceClassification.from_pretrained(export).eval()
    texts = tokenizer.apply_chat_template(turns, padding=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        scores = model(**texts).logits[:, 0]
    torch.testing.assert_close(torch.tensor(judged(export, turns)), scores, rtol=0, atol=1e-5)
    trained = in_training(export)
    for each, score in zip(turns, scores.tolist(), strict=True):
        ids = tokenizer.apply_chat_template(each, return_dict=False)
        assert trained[tuple(ids)] == pytest.approx(score, abs=1e-5)
    card = Path(export, "README.md").read_text("utf-8")
    assert "This is a reward model" in card
    assert "RewardModule" in card
    assert not Path(export, "generation_config.json").exists()
    # the same from the checkpoint
    assert main(["export", str(next(Path("runs/reward/checkpoints").glob("*.ckpt"))), "out"]) == 0
    again = AutoModelForSequenceClassification.from_pretrained("out").eval()
    with torch.inference_mode():
        assert torch.equal(again(**texts).logits[:, 0], scores)


def test_all_pairs_of_ranked_answers_share_their_answers_and_their_scores_make_margins(folder: Path) -> None:
    row = {"prompt": "Spell tako.", "answers": ["t a k o", "t a k", "t o k a", "tako"], "scores": [3.0, 2.0, 1.0, 1.0]}
    Path("ranked.jsonl").write_text(json.dumps(row) + "\n")
    tokenizer = TokenizerSpec("runs/demo/model")
    data = PreferenceDataModule([Source("ranked.jsonl")], tokenizer, pairing=AllPairs(), max_length=128)
    data.prepare_data()
    data.setup()
    (batch,) = data.train_dataloader()
    assert len(batch.answers) == 4
    assert len(batch.pairs) == 5  # but the tie
    module = RewardModule("runs/sft/export", margin_per_score=0.5)
    module.configure_model()
    assert sorted(module.margins(batch)) == [0.5, 0.5, 0.5, 1.0, 1.0]
    rewards = module.reward_model(batch)
    assert rewards.shape == (4,)
    loss = [
        torch.nn.functional.softplus(rewards[rejected] - rewards[chosen] + margin)
        for (chosen, rejected), margin in zip(batch.pairs, module.margins(batch), strict=True)
    ]
    torch.testing.assert_close(module.compute_loss(batch).total, torch.stack(loss).sum())


@pytest.mark.slow
def test_a_reward_run_goes_on_from_an_exported_one(folder: Path) -> None:
    assert main(["fit", "-c", str(REWARD), *SMALL, "--trainer.max_steps=1"]) == 0
    assert main(["fit", "-c", str(REWARD), *ONE_STEP, "--model.policy.path=runs/reward/export"]) == 0


@pytest.mark.slow
def test_the_trained_model_judges_the_rounds_of_online_dpo(folder: Path) -> None:
    copy_demo("runs/demo", preferences=60, prompts=40)
    copy_start("runs/dpo/export")
    assert main(["fit", "-c", str(REWARD), *SMALL, "--trainer.max_steps=2"]) == 0
    config = yaml.safe_load((ROOT / "configs/online_dpo.yaml").read_text())
    judge = {"class_path": "lion_lightning.judges.RewardModelJudge", "init_args": {"model": "runs/reward/export"}}
    sampling = config["trainer"]["callbacks"][0]["init_args"]
    sampling |= {"judge": judge, "keep_unfinished": True, "monitor_prompts": 4, "num_samples": 3}
    Path("judged.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "-c", "judged.yaml", *SMALL, "--trainer.max_epochs=1"]) == 0
    (made,) = find_rounds(Path("runs/online_dpo/rounds"))
    rollout = made.rollouts[0]
    turns = [[*rollout.prompt.messages, {"role": "assistant", "content": answer.text}] for answer in rollout.answers]
    assert list(rollout.scores) == pytest.approx(judged("runs/reward/export", turns), abs=1e-5)


@pytest.mark.slow
def test_lora_trains_adapters_and_the_head_and_exports_them_merged(folder: Path) -> None:
    lora = ["-c", str(ROOT / "configs/model/lora.yaml")]
    assert main(["fit", "-c", str(REWARD), *lora, *SMALL, "--trainer.max_steps=2"]) == 0
    turns = conversations()
    scores = judged("runs/reward/export", turns)
    assert len({*scores}) > len(turns) // 2
    checkpoint = str(next(Path("runs/reward/checkpoints").glob("*.ckpt")))
    assert main(["export", checkpoint, "out"]) == 0
    assert judged("out", turns) == scores
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert not [name for name in stored if "lora_" not in name and "score" not in name]
    assert main(["export", checkpoint, "adapters", "--adapter"]) == 0
    assert json.loads(Path("adapters/adapter_config.json").read_text())["task_type"] == "SEQ_CLS"


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, *exhaustive(True)])
def test_a_run_killed_by_the_system_ends_equal_bit_for_bit(folder: Path, lora: bool) -> None:
    adapters = ["-c", str(ROOT / "configs/model/lora.yaml")] if lora else []
    options = ["-c", str(REWARD), *adapters, *SMALL, "--trainer.max_epochs=8", "--data.batch_size=1"]
    assert_a_killed_run_ends_equal(folder, options, steps=48)  # 6 rows an epoch, and a checkpoint every 5 steps


@pytest.mark.slow
def test_plan_and_inspect_read_the_config(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-c", str(REWARD), "--gpus=2"]) == 0
    assert "GiB" in capsys.readouterr().out
    assert main(["inspect", "-c", str(REWARD), "--rows=1"]) == 0
    assert "--- chosen" in capsys.readouterr().out


BAD: dict[str, tuple[list[str], list[str]]] = {
    "a negative margin": (["--model.margin=-1"], ["model.margin is -1"]),
    "a margin by scores without scores": (["--model.margin_per_score=1"], ["model.margin_per_score", "no scores"]),
    "answers to be shown": (
        ["--trainer.callbacks=lion_lightning.callbacks.BeforeAfter", "--trainer.callbacks.prompts=[a]"],
        ["BeforeAfter.prompts: RewardModule trains a reward model, which writes no answers"],
    ),
    "a family without a classifier": (
        ["--model.policy={path: null, config: {model_type: granite, vocab_size: 367, hidden_size: 32}}",
         "--model.tokenizer.path=runs/demo/model"],
        ["no sequence classifier of type granite"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", slow_but(BAD))
def test_bad_input_gets_one_line_and_exit_code_2(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = BAD[case]
    assert main(["fit", "-c", str(REWARD), *ONE_STEP, *arguments]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert all(word in error for word in expected), error


@pytest.mark.parametrize("stage", slow_but(("sft", "dpo")))
def test_a_reward_folder_is_no_policy(stage: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "-c", str(REWARD), *SMALL, "--trainer.max_steps=1"]) == 0
    capsys.readouterr()
    policy = "--model.policy={path: runs/reward/export, config: null}"
    assert main(["fit", "-c", str(ROOT / f"configs/{stage}.yaml"), *ONE_STEP, policy]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "runs/reward/export is a reward model, which writes no answers; give a causal LM" in error
