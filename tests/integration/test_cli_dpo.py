"""Preference training from the command line: the shipped config runs and exports; bad input gets one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lion_lightning.cli import main
from tests.demo import copy_demo, copy_start
from tests.marks import slow_but

ROOT = Path(__file__).parents[2]
DPO = ROOT / "configs" / "dpo.yaml"
SMALL = ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]
ONE_STEP = [*SMALL, "--trainer.max_steps=1", "--trainer.callbacks=[]", "--trainer.enable_checkpointing=false"]
CSV = ['--trainer.logger={"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "runs/dpo"}}']


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small demo task, and random weights where the config expects those of stage 1."""
    copy_demo(tmp_path / "runs" / "demo", preferences=60)
    copy_start(tmp_path / "runs" / "sft" / "export")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def logged(folder: Path) -> list[dict[str, float]]:
    """What the run logged, a row a step."""
    (path,) = (folder / "runs" / "dpo").glob("lightning_logs/*/metrics.csv")
    names, *rows = [line.split(",") for line in path.read_text().splitlines()]
    return [{name: float(cell) for name, cell in zip(names, row, strict=True) if cell} for row in rows]


@pytest.mark.slow
def test_the_shipped_config_trains_reports_and_exports(folder: Path) -> None:
    assert main(["fit", "-c", str(DPO), *SMALL, *CSV, "--trainer.max_epochs=2"]) == 0
    steps = [row for row in logged(folder) if "train/loss" in row]
    assert steps[-1]["train/loss"] < steps[0]["train/loss"] - 0.1
    report = json.loads((folder / "runs/dpo/before_after.json").read_text())
    assert report["before"]["metrics"]["val/rewards/margin"] == pytest.approx(0, abs=1e-4)
    assert abs(report["after"]["metrics"]["val/rewards/margin"]) > 1e-3
    exported = AutoModelForCausalLM.from_pretrained(folder / "runs/dpo/export")
    start = AutoModelForCausalLM.from_pretrained(folder / "runs/sft/export")
    ids = AutoTokenizer.from_pretrained(folder / "runs/dpo/export")("Spell tako.", return_tensors="pt").input_ids
    assert not torch.equal(exported(ids).logits, start(ids).logits)
    card = (folder / "runs/dpo/export/README.md").read_text()
    assert "runs/demo/preferences.jsonl" in card
    assert "DPOModule" in card
    out = folder / "out"
    assert main(["export", str(next((folder / "runs/dpo/checkpoints").glob("*.ckpt"))), str(out)]) == 0
    assert torch.equal(AutoModelForCausalLM.from_pretrained(out)(ids).logits, exported(ids).logits)


def test_inspect_shows_both_answers_and_what_sharing_the_prompt_saves(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "-c", str(DPO), "--rows=1"]) == 0
    printed = capsys.readouterr().out
    assert "--- chosen" in printed
    assert "--- rejected" in printed
    assert "[[" in printed
    assert "% full" in printed
    assert "sharing the prompt saves" in printed


def test_a_loss_of_ones_own_is_picked_by_class_path(folder: Path) -> None:
    text = (ROOT / "docs" / "losses.md").read_text("utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    (folder / "my_losses.py").write_text(code)
    loss = ["--model.loss=my_losses.FocalDPOLoss", "--model.loss.init_args.beta=0.2"]
    assert main(["fit", "-c", str(DPO), *ONE_STEP, *CSV, *loss]) == 0
    first = next(row for row in logged(folder) if "train/loss" in row)
    assert first["train/loss"] == pytest.approx(0.25 * 0.6931472, rel=1e-4)  # (1 - 1/2)^2 ln 2


def rows(*written: Any) -> Callable[[Path], list[str]]:
    """A source of these rows."""

    def write(folder: Path) -> list[str]:
        (folder / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
        return ['--data.sources=[{"path": "bad.jsonl"}]', "--data.validation=null"]

    return write


def options(*arguments: str) -> Callable[[Path], list[str]]:
    return lambda folder: list(arguments)


def say(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


GOOD = {"prompt": say("user", "a"), "chosen": say("assistant", "b"), "rejected": say("assistant", "c")}
LOSS = "lion_lightning.losses."
BAD = {
    "a missing side": (rows(GOOD, {"prompt": "a", "chosen": "b"}), ["bad.jsonl:2", "rejected"]),
    "an empty side of messages": (rows(GOOD | {"rejected": []}), ["bad.jsonl:1", "rejected is empty"]),
    "prompts that differ": (
        rows(
            {"chosen": say("user", "a") + say("assistant", "b"), "rejected": say("user", "x") + say("assistant", "c")}
        ),
        ["bad.jsonl:1", "prompt"],
    ),
    "chosen equal to rejected": (rows(GOOD | {"rejected": GOOD["chosen"]}), ["mixture is empty", "identical"]),
    "all answers tie": (
        rows({"prompt": "a", "answers": ["b", "c"], "scores": [1, 1]}),
        ["mixture is empty", "equal scores"],
    ),
    "scores that do not fit": (
        rows({"prompt": "a", "answers": ["b", "c"], "scores": [1]}),
        ["bad.jsonl:1", "scores"],
    ),
    "conversations for pairs": (
        rows({"messages": GOOD["prompt"] + GOOD["chosen"]}),
        ["bad.jsonl:1", "the row has one answer", "UnpairedDataModule"],
    ),
    "beta below zero": (
        options(f"--model.loss={LOSS}SigmoidLoss", "--model.loss.init_args.beta=-1"),
        ["SigmoidLoss", "beta is -1"],
    ),
    "label smoothing out of range": (
        options(f"--model.loss={LOSS}SigmoidLoss", "--model.loss.init_args.label_smoothing=0.7"),
        ["SigmoidLoss", "label_smoothing is 0.7"],
    ),
    "a loss that needs a reference without one": (
        options("--model.reference=lion_lightning.NoReference"),
        ["WeightedSum", "NoReference", "model.reference"],
    ),
    "fewer weights than losses": (options("--model.loss.init_args.weights=[1.0]"), ["error: WeightedSum: 2 losses"]),
    "a typo in a loss": (options(f"--model.loss={LOSS}SigmodLoss"), ["SigmodLoss"]),
    "a row too short for a pair": (options("--data.row_length=20"), ["row_length"]),
    "a pair longer than the model": (options("--data.max_length=5000"), ["data.max_length", "1024"]),
}


QUICK = ("a missing side", "beta below zero", "a typo in a loss")


@pytest.mark.parametrize("case", slow_but(BAD, *QUICK))
def test_bad_input_gets_one_line_and_exit_code_2(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrange, expected = BAD[case]
    assert main(["inspect", "-c", str(DPO), *arrange(folder)]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(error) == 1
    assert all(word in error[0] for word in expected), error[0]


@pytest.mark.slow
def test_adapters_off_without_adapters_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "-c", str(DPO), *SMALL, "--model.reference=lion_lightning.AdapterOffReference"]) == 2
    assert "set policy.lora" in capsys.readouterr().err


@pytest.mark.slow
def test_a_reference_cache_of_another_model_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LION_CACHE", str(folder / "cache"))
    assert main(["fit", "-c", str(DPO), *ONE_STEP]) == 0
    (identity,) = folder.glob("cache/references/*/identity.json")
    identity.write_text(identity.read_text().replace('"weights": "', '"weights": "0'))
    assert main(["fit", "-c", str(DPO), *ONE_STEP]) == 2
    assert "belong to another model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_reference_cache_cut_short_is_computed_again(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LION_CACHE", str(folder / "cache"))
    assert main(["fit", "-c", str(DPO), *ONE_STEP]) == 0
    for file in folder.glob("cache/references/*/*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    assert main(["fit", "-c", str(DPO), *ONE_STEP]) == 0
    assert "is damaged" in capsys.readouterr().err
