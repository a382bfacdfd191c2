"""KTO from the command line: the shipped config runs on the answers of pairs and on labeled rows, and exports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lion_lightning.cli import main
from tests.demo import copy_demo, copy_start

ROOT = Path(__file__).parents[2]
KTO = ROOT / "configs" / "kto.yaml"
SMALL = ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small demo task, and random weights where the config expects those of stage 1."""
    copy_demo(tmp_path / "runs" / "demo", preferences=60)
    copy_start(tmp_path / "runs" / "sft" / "export")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_shipped_config_trains_reports_and_exports(folder: Path) -> None:
    assert main(["fit", "-c", str(KTO), *SMALL, "--trainer.max_epochs=2"]) == 0
    report = json.loads((folder / "runs/kto/before_after.json").read_text())
    before, after = (report[when]["metrics"] for when in ("before", "after"))
    assert before["val/loss"] == pytest.approx(0.5, abs=1e-4)  # 1 - sigmoid(0), desirable or not
    assert before["val/desirable"] == 0.5
    assert after["val/loss"] != before["val/loss"]
    exported = AutoModelForCausalLM.from_pretrained(folder / "runs/kto/export").state_dict()
    start = AutoModelForCausalLM.from_pretrained(folder / "runs/sft/export").state_dict()
    assert any(not torch.equal(exported[name], start[name]) for name in start)
    card = (folder / "runs/kto/export/README.md").read_text()
    assert "over labeled answers" in card


def test_the_shipped_config_takes_rows_with_labels(folder: Path) -> None:
    rows = [
        {"prompt": f"Spell tako{number}.", "completion": f"t a k o {number}", "label": number % 3 == 0}
        for number in range(12)
    ]
    (folder / "labeled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = ["--trainer.max_steps=1", "--trainer.callbacks=[]", "--trainer.enable_checkpointing=false"]
    sources = ['--data.sources=[{"path": "labeled.jsonl"}]', "--data.validation=null"]
    assert main(["fit", "-c", str(KTO), *SMALL, *steps, *sources]) == 0
