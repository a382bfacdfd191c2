"""Streams by the command line: the shipped config trains, is inspected, is killed and goes on to the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lion_lightning.cli import main
from lion_lightning.data.sft import SFTDataModule
from lion_lightning.data.sources.source import Source
from tests.demo import copy_demo
from tests.distributed.ranks import run_ranks
from tests.integration.killed_runs import assert_a_killed_run_ends_equal
from tests.unit.data.letters import byte_tokenizer
from tests.unit.data.streaming.test_stream import answers, flat, write

pytestmark = pytest.mark.filterwarnings("ignore")

STREAM = Path(__file__).parents[2] / "configs" / "sft_stream.yaml"
DPO = STREAM.with_name("dpo.yaml")
SMALL = ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1", "--data.stream.window=64"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small demo task where the configs look for it."""
    copy_demo(tmp_path / "runs" / "demo", train=300, validation=16)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_shipped_config_is_inspected(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "-c", str(STREAM), "--rows=1"]) == 0
    printed = capsys.readouterr().out
    assert "Training, the first rows of each stream" in printed
    assert "[[" in printed


@pytest.mark.slow
def test_a_run_without_an_end_is_refused_where_the_schedule_needs_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = ["--trainer.max_steps=-1", "--trainer.max_epochs=1", "--data.num_workers=0"]
    assert main(["fit", "-c", str(STREAM), *SMALL, *ends]) == 2
    assert "lr_scheduler: the run has no known end; set trainer.max_steps" in capsys.readouterr().err


def test_a_cached_reference_needs_all_pairs_before(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = '[{"path": "runs/demo/preferences.jsonl", "streaming": true}]'
    assert main(["fit", "-c", str(DPO), f"--data.sources={source}", "--model.policy.path=runs/demo/model"]) == 2
    assert "data.sources stream, and CachedReference computes" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stream_killed_by_the_system_goes_on_to_the_same_weights(folder: Path) -> None:
    rows = folder / "runs" / "demo" / "train.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:130]))
    options = ["-c", str(STREAM), *SMALL, "--trainer.max_steps=28"]
    assert_a_killed_run_ends_equal(folder, options, steps=28)
    assert torch.load("whole/checkpoints/last.ckpt", weights_only=True)["epoch"] >= 2  # the third, or later


def stream(rank: int, world: int, path: str) -> Any:
    """What this rank reads under a Trainer."""
    data = SFTDataModule([Source(path, streaming=True)], byte_tokenizer(), max_length=64, num_workers=1)
    settings: dict[str, Any] = {"strategy": "ddp", "devices": world} if world > 1 else {"devices": 1}
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **settings)
    trainer.strategy.setup_environment()
    data.trainer = trainer
    data.prepare_data()
    data.setup()
    return answers(data.train_dataloader())


@pytest.mark.distributed
def test_two_processes_share_one_sequence_of_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "rows", range(60))
    whole = stream(0, 1, path)
    ranks = run_ranks(stream, tmp_path, path)
    taken = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert taken[: len(whole)] == whole
    assert flat(taken[len(whole) :]) == []
