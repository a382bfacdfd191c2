"""Streams killed anywhere and resumed under a Trainer: the same batches, weights and optimizer, bit for bit.

The runs, and what is compared, are those of test_resume.py; only the loader is another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lion_lightning.data.packing.best_fit import BestFit
from lion_lightning.data.selection.sft_filters import SFTFilters
from lion_lightning.data.sources.source import Source
from lion_lightning.data.streaming.loader import StreamLoader
from lion_lightning.data.streaming.settings import StreamSettings
from lion_lightning.data.streaming.streamed import StreamedSources
from lion_lightning.modules.optimization.schedules import CosineWithWarmup
from tests.integration.test_resume import (
    AFTER_VALIDATION,
    EPOCH,
    EPOCH_END,
    EVERY_STEP,
    Runs,
    killed,
)
from tests.marks import exhaustive, slow
from tests.unit.data.letters import Letters

pytestmark = pytest.mark.filterwarnings("ignore")


class StreamRuns(Runs):
    """Trains on 32 documents in windows of 6: their rows of 8 make six batches of 3 rows."""

    lookahead = 1
    schedule = staticmethod(partial(CosineWithWarmup, total_steps=EPOCH))  # a stream has no length

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        rng = np.random.default_rng(1)
        texts = ["".join(rng.choice([*"ABC012"], size=rng.integers(1, 8)).tolist()) for _ in range(32)]
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps({"text": "0" + text}) + "\n" for text in texts))
        self.source = Source(str(path), name="letters", streaming=True)

    def loader(self, shuffle: bool, workers: int) -> Any:
        if not shuffle:  # of validation
            return super().loader(shuffle, workers)
        settings = StreamSettings(window=6, remember=0)
        streamed = StreamedSources.open([self.source], Letters(), SFTFilters(8), settings)
        options: dict[str, Any] = {"packing": BestFit(), "capacity": 8}
        return StreamLoader(streamed, **options, batch_size=3, seed=5, num_workers=workers, lookahead=self.lookahead)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return StreamRuns(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("kill", [3, *slow(EPOCH), *exhaustive(EPOCH - 1, EPOCH + 1, 2 * EPOCH - 1)])
def test_a_killed_run_ends_as_one_that_was_not(runs: Runs, tmp_path: Path, kill: int) -> None:
    killed(runs, tmp_path, [kill], EVERY_STEP)


@pytest.mark.slow
def test_what_workers_had_read_ahead_is_not_lost(runs: Runs, tmp_path: Path) -> None:
    killed(runs, tmp_path, [EPOCH + 3], EVERY_STEP, workers=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kills", [[EPOCH, EPOCH + 1], *exhaustive([3, 5], [EPOCH, EPOCH + 1, EPOCH + 4], [EPOCH + 1, EPOCH + 3])]
)
def test_a_run_killed_again_and_again(runs: Runs, tmp_path: Path, kills: Sequence[int]) -> None:
    killed(runs, tmp_path, kills, EVERY_STEP)


@pytest.mark.slow
@pytest.mark.parametrize(
    "save", [EPOCH_END, *exhaustive(EVERY_STEP, AFTER_VALIDATION)], ids=["epoch", "step", "validation"]
)
@pytest.mark.parametrize("kills", [[EPOCH, EPOCH + 1], *exhaustive([EPOCH + 4])])
def test_a_run_that_counts_steps(runs: Runs, tmp_path: Path, save: dict[str, Any], kills: Sequence[int]) -> None:
    killed(runs, tmp_path, kills, save, max_epochs=-1, max_steps=EPOCH)


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "interval", "epoch"), [(3, 5, 1), *exhaustive((2, 3, 0), (2, 3, 1), (4, 5, 0))])
def test_a_checkpoint_within_an_accumulation_window(
    runs: Runs, tmp_path: Path, accumulate: int, interval: int, epoch: int
) -> None:
    options = {"val_check_interval": interval, "accumulate_grad_batches": accumulate}
    killed(runs, tmp_path, [epoch * EPOCH + interval], AFTER_VALIDATION, **options)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [2, *exhaustive(3, EPOCH - 1, EPOCH, EPOCH + 3)])
def test_a_checkpoint_that_an_exception_saved_in_the_middle_of_a_batch(runs: Runs, tmp_path: Path, kill: int) -> None:
    killed(runs, tmp_path, [kill], EPOCH_END | {"save_on_exception": True})


@pytest.mark.slow
@pytest.mark.parametrize(
    "save", [EPOCH_END, *exhaustive(EVERY_STEP, AFTER_VALIDATION)], ids=["epoch", "step", "validation"]
)
@pytest.mark.parametrize(
    "more", [{"max_epochs": -1, "max_steps": EPOCH}, *exhaustive({"max_epochs": 2, "max_steps": -1})]
)
def test_a_run_that_ended_within_an_epoch_goes_on_within_it_when_it_is_given_more(
    runs: Runs, tmp_path: Path, save: dict[str, Any], more: dict[str, Any]
) -> None:
    whole = runs.whole(save)
    runs.fit(str(tmp_path), save, max_epochs=-1, max_steps=2)  # after 4 batches
    assert runs.fit(str(tmp_path), save, **more)[1].trained == whole[1].trained[4:]


@pytest.mark.slow
@pytest.mark.parametrize("save", [EPOCH_END, AFTER_VALIDATION], ids=["epoch", "validation"])
@pytest.mark.parametrize("more", [{"max_epochs": 2}, *exhaustive({"max_epochs": -1, "max_steps": EPOCH})])
def test_a_finished_epoch_is_followed_by_the_next(
    runs: Runs, tmp_path: Path, save: dict[str, Any], more: dict[str, Any]
) -> None:
    whole = runs.whole(save)
    runs.fit(str(tmp_path), save, max_epochs=1)
    assert runs.fit(str(tmp_path), save, **more)[1].trained == whole[1].trained[EPOCH:]


@pytest.mark.slow
@pytest.mark.parametrize("kill", [5, *exhaustive(4, 6)])
def test_an_epoch_that_a_limit_ends(tmp_path: Path, kill: int) -> None:
    """The epoch ends at 4 of 6 batches, and the next begins at the stream's start. Lightning then knows its length."""
    runs = StreamRuns(tmp_path)
    options: dict[str, Any] = {"limit_train_batches": 4, "max_epochs": -1, "max_steps": 4, "accumulate_grad_batches": 2}
    runs.lookahead = 0
    whole = runs.fit(str(tmp_path / "whole"), EVERY_STEP, **options)
    assert [key[:2] for key in whole[1].trained] == [(epoch, batch) for epoch in (0, 1) for batch in range(4)]
    kill_at = kill if kill < 4 else EPOCH + kill - 4  # Record counts six batches an epoch
    runs.fit(str(tmp_path), EVERY_STEP, kill_at, **options)
    resumed = runs.fit(str(tmp_path), EVERY_STEP, **options)
    assert resumed[1].trained == whole[1].trained[-len(resumed[1].trained) :]
