"""A fast_dev_run leaves no file behind, and touches none of a real run's."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lion_lightning.callbacks import BeforeAfter, HuggingFaceExport, Provenance, SampleTable, StartupSummary
from tests.marks import exhaustive
from tests.unit.callbacks.conftest import Bench


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def run(bench: Bench, **options: object) -> None:
    writing = (HuggingFaceExport(), BeforeAfter(["w3"], 2), StartupSummary(), SampleTable(["w3"], 2), Provenance())
    bench.fit(bench.trainer(*writing, **options))


@pytest.mark.parametrize("batches", [2, *exhaustive(True)])
def test_the_files_of_a_real_run_stay_as_they_are(batches: bool | int, bench: Bench) -> None:
    run(bench)
    before = content(bench.folder)
    written = {"export/model.safetensors", "before_after.json", "startup.json", "samples.jsonl", "provenance.json"}
    assert {f"run/{name}" for name in written} <= before.keys()
    run(bench, fast_dev_run=batches)
    assert content(bench.folder) == before


def test_nothing_is_made_where_nothing_was(bench: Bench) -> None:
    run(bench, fast_dev_run=True)
    assert not (bench.folder / "run").exists()


def test_no_checkpoint_is_saved_that_a_real_run_would_go_on_from(bench: Bench) -> None:
    """Lightning 2.6 saves `last.ckpt` when training ends, under fast_dev_run too."""
    saving = ModelCheckpoint(bench.folder / "saved", save_last=True)
    bench.fit(bench.trainer(saving, enable_checkpointing=True))
    before = content(bench.folder)
    assert "saved/last.ckpt" in before
    again = ModelCheckpoint(bench.folder / "saved", save_last=True)
    bench.fit(bench.trainer(again, enable_checkpointing=True, fast_dev_run=True))
    assert content(bench.folder) == before
    assert again.save_last is True  # a later run may have the same callback
