"""Learning percentages from the command line, and the demonstration in little."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from examples.learning import selection
from examples.learning.embeddings import hashed_words
from lion_lightning.cli import main
from lion_lightning.data.learning.record import RecordedLosses
from lion_lightning.tools.demo import FAMILIES
from tests.demo import copy_demo
from tests.integration.killed_runs import assert_a_killed_run_ends_equal

pytestmark = pytest.mark.slow

SFT = Path(__file__).parents[3] / "configs" / "sft.yaml"
SMALL = ["--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0"]
RECORD = {"class_path": "lion_lightning.callbacks.LearningRecord"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy_demo(tmp_path / "runs" / "demo", train=96, validation=16)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chosen(**settings: Any) -> list[str]:
    rule = {"class_path": "lion_lightning.data.learning.LatestLearnt", "init_args": settings}
    return ["fit", "-c", str(SFT), *SMALL, "--trainer.callbacks=[]", f"--data.document_filters={json.dumps([rule])}"]


def test_a_killed_run_is_recorded_as_one_left_alone(folder: Path) -> None:
    assert_a_killed_run_ends_equal(
        folder, ["-c", str(SFT), *SMALL, "--trainer.max_epochs=3"], steps=18, callbacks=[RECORD]
    )
    whole, killed = (folder / run / "learning.arrow" for run in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    losses = RecordedLosses.read(whole)
    assert len(losses.places) == 96
    assert [moment.step for moment in losses.moments] == [0, 6, 12, 18]


def test_a_config_chooses_from_what_another_has_recorded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "-c", str(SFT), *SMALL, f"--trainer.callbacks={json.dumps([RECORD])}"]) == 0
    assert "LearningRecord: losses of 96 documents before training and after 2 epochs" in capsys.readouterr().err
    record = "runs/sft/learning.arrow"
    assert main([*chosen(record=record, share=0.25), "--trainer.max_steps=1"]) == 0
    assert "left out, learnt early: 72 (" in capsys.readouterr().err
    for settings, said in (
        ({"record": record, "share": 2.0}, "share is 2.0; give a share of the documents"),
        ({"record": str(SFT), "share": 0.5}, "damaged, or not a learning record"),
    ):
        assert main(chosen(**settings)) == 2
        assert said in capsys.readouterr().err


def test_the_demonstration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = selection.main([str(tmp_path), "--rows", "220", "--epochs", "1", "--seeds", "0"])
    assert all(len(values) == 1 and math.isfinite(values[0]) for values in found.values())
    assert {f"learning percentage, {family}" for family in FAMILIES} <= found.keys()
    wrong = [found[f"{name}: wrong rows in it"][0] for name in selection.SELECTIONS]
    assert all(0 <= count <= 11 for count in wrong)  # of 5% of 220
    assert found["latest: wrong rows in it"][0] + found["earliest: wrong rows in it"][0] <= 11  # two quarters apart
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(found)
    losses = RecordedLosses.read(tmp_path / "0" / "learning.arrow")
    assert len(losses.places) == 231
    assert losses.nll[-1].sum() < losses.nll[0].sum()


def test_texts_with_the_same_words_lie_together() -> None:
    points = hashed_words(["Spell tako.", "spell TAKO.", "Which is larger?", ""])
    assert (points[0] == points[1]).all()
    assert points[0] @ points[1] == pytest.approx(1)
    assert points[0] @ points[2] < 0.9
    assert not points[3].any()
