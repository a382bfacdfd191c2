"""A checkpoint is a file from anywhere: its `lion` entry is checked in each part, and never makes code run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lion_lightning.judges import PairRMJudge, RewardModelJudge
from lion_lightning.models.checkpoints.export import export_checkpoint
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules import SFTModule
from tests.tiny import Rows, config, policy, row, shallow, tokenizer_folder, trainer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """What a run writes, as far as exports read it; each test gets a copy, with a tokenizer of its own."""
    made = policy()
    state = {f"policy.model.{name}": tensor for name, tensor in made.model.state_dict().items()}
    entry = {
        "module": "SFTModule",
        "policy": asdict(PolicySpec(config=config())),
        "config": made.causal_lm.config.to_dict(),
        "new_ids": [],
        "data": {},
        "steps": 2,
    }
    return {"lion": entry, "state_dict": state}


@pytest.fixture
def checkpoint(tmp_path: Path, tokenizer: Path, written: dict[str, Any]) -> Path:
    own = shutil.copytree(tokenizer, tmp_path / "tokenizer")
    entry = written["lion"] | {"tokenizer": asdict(TokenizerSpec(str(own)))}
    torch.save({**written, "lion": entry}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def change(checkpoint: Path, how: Callable[[dict[str, Any]], Any]) -> None:
    content = torch.load(checkpoint, weights_only=True)
    how(content)
    torch.save(content, checkpoint)


def refused(checkpoint: Path, said: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        export_checkpoint(checkpoint, checkpoint.parent / "out", **options)
    assert str(caught.value).startswith(f"{checkpoint}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not list((checkpoint.parent / "out").glob("*"))


def hostile(folder: Path) -> Path:
    """A folder of a model whose code leaves a file named `ran` there, whoever runs it: model, tokenizer, generation."""
    code = f"open({str(folder / 'ran')!r}, 'w')\nclass Made: pass\n"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("made.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code, encoding="utf-8")
    autos = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    settings = {"model_type": "homemade", "auto_map": dict.fromkeys(autos, "made.Made"), "num_labels": 1}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = {"tokenizer_class": "Made", "auto_map": {"AutoTokenizer": ["made.Made", "made.Made"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "generation_config.json").write_text('{"custom_generate": "."}', encoding="utf-8")
    return folder


TRUSTING: dict[str, Callable[[dict[str, Any], Path], Any]] = {
    "policy.path": lambda lion, evil: lion["policy"].update(path=str(evil), config=None, trust_remote_code=True),
    "policy.config": lambda lion, evil: lion["policy"].update(config=str(evil), trust_remote_code=True),
    "model_type": lambda lion, evil: (
        lion["policy"].update(path=str(evil), config=None, trust_remote_code=True),
        lion["config"].update(json.loads((evil / "config.json").read_text("utf-8"))),
    ),
    "tokenizer": lambda lion, evil: lion["tokenizer"].update(path=str(evil), trust_remote_code=True),
    "auto_map": lambda lion, evil: (
        lion["policy"].update(trust_remote_code=True),
        lion["config"].update(auto_map={"AutoModelForCausalLM": f"{evil}--made.Made"}),
    ),
    "base": lambda lion, evil: (
        lion["policy"].update(path=str(evil), config=None, lora={"r": 2}, trust_remote_code=True),
        lion.update(base="0" * 40),
    ),
}


@pytest.mark.parametrize("name", TRUSTING)
def test_a_checkpoint_that_says_its_code_may_run_is_not_believed(name: str, checkpoint: Path) -> None:
    evil = hostile(checkpoint.parent / "evil")
    change(checkpoint, lambda content: TRUSTING[name](content["lion"], evil))
    try:
        export_checkpoint(checkpoint, checkpoint.parent / "out")
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 - where the model is plain, there is nothing to refuse
    assert not (evil / "ran").exists()


def test_whoever_asks_for_the_code_gets_it(checkpoint: Path) -> None:
    evil = hostile(checkpoint.parent / "evil")
    change(checkpoint, lambda content: TRUSTING["policy.path"](content["lion"], evil))
    with pytest.raises(Exception):  # noqa: B017, PT011 - what such code is worth is its own affair
        export_checkpoint(checkpoint, checkpoint.parent / "out", trust_remote_code=True)
    assert (evil / "ran").exists()


def test_hyper_parameters_in_a_checkpoint_cannot_ask_for_code_either(tmp_path: Path) -> None:
    evil = hostile(tmp_path / "evil")
    asked = {"path": str(evil), "trust_remote_code": True}
    plain = {"policy": str(evil), "tokenizer": {"path": str(evil)}}
    for wrong in ({"policy": asked}, {"tokenizer": asked}):
        content = {"pytorch-lightning_version": "2.6.6", "state_dict": {}, "hyper_parameters": plain | wrong}
        torch.save(content, tmp_path / "evil.ckpt")
        with pytest.raises(ValueError, match=r"trust_remote_code\), and a file is not believed"):
            SFTModule.load_from_checkpoint(tmp_path / "evil.ckpt")
    assert not (evil / "ran").exists()


def test_no_folder_makes_code_run_or_asks_whether_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks on the terminal where nobody has said no."""
    monkeypatch.setattr("builtins.input", lambda _: "y")
    evil = str(hostile(tmp_path / "evil"))
    for read in (
        lambda: PolicySpec(evil).build(),
        lambda: PolicySpec(config=evil).build(),
        lambda: TokenizerSpec(evil).load(),
        lambda: RewardModelJudge(evil).open(torch.device("cpu")),
        lambda: PairRMJudge(evil).open(torch.device("cpu")),
    ):
        with pytest.raises(ValueError, match=r"evil|code"):
            read()
    policy().causal_lm.save_pretrained(evil)  # a plain model, with code for its generation beside it
    PolicySpec(evil).build()
    assert not (tmp_path / "evil" / "ran").exists()


def test_what_names_code_is_not_handed_on_in_exports(checkpoint: Path) -> None:
    named: dict[str, Any] = {"auto_map": {"AutoModelForCausalLM": "evil/repo--made.Made"}}
    named["custom_pipelines"] = {"x": {"impl": "evil.B"}}
    change(checkpoint, lambda content: content["lion"]["config"].update(named))
    settings = checkpoint.parent / "tokenizer" / "tokenizer_config.json"
    tokenizer = {**json.loads(settings.read_text("utf-8")), "auto_map": {"AutoTokenizer": [None, "evil/repo--a.B"]}}
    settings.write_text(json.dumps(tokenizer), encoding="utf-8")
    out = export_checkpoint(checkpoint, checkpoint.parent / "out")
    assert not [file.name for file in out.glob("*.json") if "evil" in file.read_text("utf-8")]


ODD: dict[str, tuple[Any, str]] = {
    "a list": ([1], "its `lion` entry is a list, not a mapping"),
    "text": ("policy", "its `lion` entry is a str"),
    "empty": ({}, "'policy' is missing"),
    "policy": ({"policy": [1]}, r"policy: \[1\] cannot be used; give a mapping"),
    "unknown": ({"policy": {"pathh": "x"}}, "there is no setting 'pathh'; did you mean 'path'"),
    "dtype": ({"policy": {"dtype": "float8"}}, r"policy.dtype: 'float8' cannot be used; give float32, bfloat16"),
    "lora": ({"policy": {"lora": {"rank": 1}}}, "policy.lora: there is no setting 'rank'"),
    "rank": ({"policy": {"lora": {"r": "big"}}}, "policy.lora.r: 'big' cannot be used; give a whole number"),
    "tokenizer": ({"tokenizer": None}, "tokenizer: None cannot be used"),
    "no path": ({"tokenizer": {"eos_token": "x"}}, "tokenizer: 'path' is missing"),
    "config": ({"config": "llama"}, "config: 'llama' cannot be used"),
    "model type": ({"config": {"model_type": "lama"}}, "did you mean 'llama'"),
    "ids": ({"new_ids": ["a"]}, "new_ids: .* a list of a whole number"),
    "stops": ({"generation": {"eos_token_id": "x"}}, "eos_token_id is 'x'"),
    "layers": ({"config": {"model_type": "llama", "num_hidden_layers": 10**9}}, "do not fit the model"),
    "width": ({"config": config(hidden_size=2**24)}, r"of another shape lm_head\.weight"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_entry_is_one_line_that_names_what_is_odd(name: str, checkpoint: Path) -> None:
    wrong, said = ODD[name]
    keeps = name not in ("a list", "text", "empty")
    change(checkpoint, lambda content: content.update(lion={**content["lion"], **wrong} if keeps else wrong))
    refused(checkpoint, said)


def fit(tokenizer: Path, steps: int, **options: Any) -> Trainer:
    run = trainer(max_steps=steps)
    module = SFTModule(PolicySpec(config=shallow()), tokenizer=TokenizerSpec(str(tokenizer)))
    run.fit(module, Rows([row(seed=seed) for seed in range(4)]), **options)
    return run


@pytest.fixture(scope="module")
def two_steps(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's own checkpoint."""
    made = tmp_path_factory.mktemp("run") / "last.ckpt"
    fit(tokenizer, 2).save_checkpoint(made)
    return made


ODD_RESUMES: dict[str, Any] = {
    "its `lion` entry is a list": [1],
    "its `lion` entry is a NoneType": None,
    "`lion`.base: 3 cannot be used": {"base": 3},
    "`lion`.reference: .1. cannot be used": {"reference": [1]},
    "`lion`.config: 'x' cannot be used": {"config": "x"},
    "`lion`.settings: .1. cannot be used": {"settings": [1]},
    "`lion`.module: 3 cannot be used": {"module": 3},
}


def go_on(odd: Path, tokenizer: Path, how: Callable[[dict[str, Any]], Any]) -> None:
    """For a step, from a checkpoint that was changed."""
    change(odd, how)
    fit(tokenizer, 3, ckpt_path=odd)


@pytest.fixture
def odd(two_steps: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(two_steps, tmp_path / "odd.ckpt"))


@pytest.mark.parametrize("said", ODD_RESUMES)
def test_an_odd_entry_is_one_line_on_resume_too(said: str, odd: Path, tokenizer: Path) -> None:
    wrong = ODD_RESUMES[said]

    def how(content: dict[str, Any]) -> None:
        content["lion"] = {**content["lion"], **wrong} if isinstance(wrong, dict) else wrong

    with pytest.raises(ValueError, match=rf"odd\.ckpt: {said}"):
        go_on(odd, tokenizer, how)


def test_training_does_not_go_on_from_weights_that_are_no_numbers(odd: Path, tokenizer: Path) -> None:
    def how(content: dict[str, Any]) -> None:
        content["state_dict"]["policy.model.model.norm.weight"][3] = float("nan")

    with pytest.raises(ValueError, match=r"odd\.ckpt: .*model\.norm\.weight holds NaN"):
        go_on(odd, tokenizer, how)


@pytest.mark.parametrize("state", [None, [1], {}, {"policy.model.lm_head.weight": "text"}])
def test_a_checkpoint_without_weights_is_one_line(state: Any, checkpoint: Path) -> None:
    change(checkpoint, lambda content: content.update(state_dict=state))
    refused(checkpoint, "weight|state_dict")


def test_weights_of_another_shape_are_named(checkpoint: Path) -> None:
    name = "policy.model.model.norm.weight"
    change(checkpoint, lambda content: content["state_dict"].update({name: torch.ones(31)}))
    refused(checkpoint, r"of another shape model\.norm\.weight \(stored \[31\], needed \[32\]\)")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_exported(value: float, checkpoint: Path) -> None:
    change(checkpoint, lambda content: content["state_dict"]["policy.model.model.norm.weight"].fill_(value))
    refused(checkpoint, r"model\.norm\.weight holds (NaN|an infinity)")


def test_weights_that_overflow_when_they_are_rounded_are_not_exported(checkpoint: Path) -> None:
    change(
        checkpoint,
        lambda content: (
            content["lion"]["policy"].update(dtype="float16"),
            content["state_dict"]["policy.model.model.norm.weight"].fill_(1e6),
        ),
    )
    refused(checkpoint, r"model\.norm\.weight holds an infinity")


def test_a_head_that_no_export_holds_is_said_to_be_left_out(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(checkpoint, lambda content: content["state_dict"].update({"value_head.weight": torch.ones(1)}))
    with caplog.at_level("WARNING"):
        export_checkpoint(checkpoint, checkpoint.parent / "out")
    assert "the policy alone; not in it: value_head.weight" in caplog.text


def test_another_exports_files_are_not_mixed_with_this_ones(checkpoint: Path) -> None:
    out = checkpoint.parent / "out"
    out.mkdir()
    stale = (
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "adapter_model.safetensors",
        "adapter_config.json",
        "added_tokens.json",
    )
    for name in (*stale, "notes.txt"):
        (out / name).write_text("{}", encoding="utf-8")
    export_checkpoint(checkpoint, out)
    assert not [name for name in stale if (out / name).exists()]
    assert (out / "notes.txt").exists()
    PolicySpec(str(out)).build()


def test_the_model_that_training_started_from_is_not_written_over(checkpoint: Path) -> None:
    base = checkpoint.parent / "base"
    policy().causal_lm.save_pretrained(base)
    change(checkpoint, lambda content: content["lion"]["policy"].update(path=str(base), config=None))
    before = {file.name: file.read_bytes() for file in base.iterdir()}
    with pytest.raises(ValueError, match="is the model that training started from"):
        export_checkpoint(checkpoint, base / ".." / "base")
    assert {file.name: file.read_bytes() for file in base.iterdir()} == before
