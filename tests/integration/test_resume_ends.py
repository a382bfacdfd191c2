"""Killed behind the last checkpoint: what followed it is done by the resumed run, the log's rows to the export."""

from __future__ import annotations

import csv
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lion_lightning import PolicySpec, SFTModule, TokenizerSpec
from lion_lightning.callbacks import HuggingFaceExport
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.models.checkpoints.files import newest_checkpoint
from lion_lightning.types import Sample, SampleSegment
from tests import tiny
from tests.integration.online import Online, Sampler
from tests.marks import exhaustive, slow

pytestmark = pytest.mark.filterwarnings("ignore")

BATCHES = 3


class KilledError(Exception):
    """Stands for SIGKILL: nothing is saved after it."""


class Kill(ModelCheckpoint):
    """Saves, and then kills the run at this step and hook: Lightning calls checkpoints after all other callbacks."""

    def __init__(self, folder: Path, moment: tuple[int, str] | None, **save: Any) -> None:
        super().__init__(folder, save_top_k=-1, save_last="link", **save)
        self.moment = moment

    def _reached(self, trainer: Trainer, hook: str) -> None:
        if (trainer.global_step, hook) == self.moment and not trainer.sanity_checking:
            raise KilledError

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        super().on_train_batch_end(trainer, *rest)
        self._reached(trainer, "batch end")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reached(trainer, "validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._reached(trainer, "validation end")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self._reached(trainer, "epoch end")


class Hooks(Callback):
    """Counts what a run comes by, and kills it before anything else is done at its end."""

    def __init__(self, killed_at_end: bool) -> None:
        self.killed_at_end = killed_at_end
        self.seen: Counter[tuple[str, int]] = Counter()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.seen["batch", trainer.global_step] += 1

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen["validated", trainer.global_step] += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("epoch/steps", float(trainer.global_step))
        self.seen["epoch", trainer.current_epoch] += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.killed_at_end:
            raise KilledError
        self.seen["end", trainer.global_step] += 1


class Runs:
    """Runs of two epochs of three batches, each in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = TokenizerSpec(str(tiny.tokenizer_folder(folder / "tokenizer")))
        rng = np.random.default_rng(0)
        ids = rng.integers(3, tiny.VOCABULARY, (2 * BATCHES, 5)).astype(np.int32)
        self.samples = [Sample((SampleSegment(row, np.ones(5, bool)),), number) for number, row in enumerate(ids)]
        self.undisturbed: dict[str, Result] = {}

    def loader(self, shuffle: bool) -> PackedLoader:
        return PackedLoader(self.samples, np.full(2 * BATCHES, 5), capacity=5, batch_size=2, shuffle=shuffle, seed=5)

    def fit(
        self, name: str, save: dict[str, Any], moment: tuple[int, str] | None = None, at_end: bool = False, **more: Any
    ) -> Result:
        """Go on in this folder; what is there in the end."""
        torch.manual_seed(0)
        module = SFTModule(
            PolicySpec(config=tiny.config(num_hidden_layers=1)),
            tokenizer=self.tokenizer,
            optimizer=partial(torch.optim.AdamW, lr=1e-2),
        )
        folder, hooks = self.folder / name, Hooks(at_end)
        callbacks = [hooks, HuggingFaceExport(str(folder / "export")), Kill(folder / "checkpoints", moment, **save)]
        settings = {"max_epochs": 2, "num_sanity_val_steps": 0, "log_every_n_steps": 1, "enable_checkpointing": True}
        trainer = tiny.trainer(callbacks=callbacks, logger=CSVLogger(folder), **(settings | more))
        start = newest_checkpoint(folder / "checkpoints")
        killed = moment is not None or at_end
        try:
            trainer.fit(module, self.loader(True), self.loader(False), ckpt_path=start)
        except KilledError:
            assert killed
            killed = False
        assert not killed
        moments = trainer.optimizers[0].state_dict()["state"] if trainer.optimizers else {}
        state = {f"{k} {n}": torch.as_tensor(v) for k, values in moments.items() for n, v in values.items()}
        return Result(
            {**module.state_dict(), **state}, rows_of(folder), hooks.seen, (folder / "export" / "config.json").exists()
        )

    def whole(self, save: dict[str, Any], **more: Any) -> Result:
        """The run that nobody kills, made once."""
        key = repr((save, more))
        if key not in self.undisturbed:
            self.undisturbed[key] = self.fit(f"whole {len(self.undisturbed)}", save, **more)
        return self.undisturbed[key]


class Result(NamedTuple):
    """What a run leaves: weights and moments, the log's rows of all starts, the hooks of the last start, an export."""

    state: dict[str, torch.Tensor]
    rows: dict[tuple[str, int], str]
    seen: Counter[tuple[str, int]]
    exported: bool


def rows_of(folder: Path) -> dict[tuple[str, int], str]:
    """Values by key and step, of all starts; no start logs anything twice."""
    found: dict[tuple[str, int], str] = {}
    for path in sorted(folder.glob("lightning_logs/*/metrics.csv")):
        with path.open(newline="") as file:
            cells = [
                (key, int(row["step"]), value) for row in csv.DictReader(file) for key, value in row.items() if value
            ]
        cells = [cell for cell in cells if cell[0] not in ("step", "epoch")]
        assert len({cell[:2] for cell in cells}) == len(cells)
        found |= {cell[:2]: cell[2] for cell in cells}
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


def assert_same_end(resumed: Result, whole: Result) -> None:
    assert resumed.rows == whole.rows
    assert resumed.state.keys() >= whole.state.keys()
    assert all(torch.equal(resumed.state[name], tensor) for name, tensor in whole.state.items())
    assert resumed.exported
    ends = [key for key in whole.seen if key[0] == "end"]
    assert [key for key in resumed.seen if key[0] == "end"] == ends
    assert resumed.seen[ends[0]] == 1


STEPS = {"every_n_train_steps": 1}
MIDDLE = {"val_check_interval": 2}
SHORT = {"max_steps": 5, "max_epochs": -1}


@pytest.mark.parametrize(
    ("save", "moment", "more"),
    [
        (STEPS, (2, "batch end"), {}),  # the step's row was not logged
        *slow(
            (STEPS, (6, "validation"), {}),  # nor has the run, and nothing is left to train
            (STEPS, (3, "batch end"), {}),  # nor was the epoch validated and ended
            (STEPS, (5, "validation"), MIDDLE),  # validation within an epoch
            (STEPS, (5, "batch end"), SHORT),  # max_steps within an epoch
            ({"save_on_train_epoch_end": True}, (6, "epoch end"), {}),
        ),
        *exhaustive(
            (STEPS, (3, "validation"), {}),
            (STEPS, (6, "batch end"), {}),
            (STEPS, (2, "validation"), MIDDLE),
            (STEPS, (4, "batch end"), MIDDLE),
            (STEPS, (5, "validation"), SHORT | MIDDLE),
            (STEPS, (2, "batch end"), {"accumulate_grad_batches": 2}),
            (STEPS, (4, "validation"), {"accumulate_grad_batches": 2}),
            (STEPS, (6, "epoch end"), {}),
            (STEPS, (3, "batch end"), {"limit_val_batches": 0}),
            (STEPS, (6, "batch end"), {"limit_val_batches": 0}),
            (STEPS, (4, "batch end"), {"log_every_n_steps": 2}),
            ({"save_on_train_epoch_end": False}, (3, "validation end"), {}),
            ({"save_on_train_epoch_end": False}, (6, "validation end"), {}),
            ({"save_on_train_epoch_end": False}, (5, "validation end"), MIDDLE),
            ({"save_on_train_epoch_end": False}, (5, "validation end"), SHORT | MIDDLE),
            ({"save_on_train_epoch_end": True}, (3, "epoch end"), {}),
            ({"save_on_train_epoch_end": True}, (5, "epoch end"), SHORT),
        ),
    ],
)
def test_what_followed_the_last_checkpoint_is_done_by_the_resumed_run(
    runs: Runs, tmp_path: Path, save: dict[str, Any], moment: tuple[int, str], more: dict[str, Any]
) -> None:
    whole = runs.whole(save, **more)
    runs.fit(str(tmp_path), save, moment, **more)
    assert_same_end(runs.fit(str(tmp_path), save, **more), whole)


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, *exhaustive(SHORT)])
def test_killed_before_the_export_it_is_made_and_a_finished_run_trains_nothing(
    runs: Runs, tmp_path: Path, more: dict[str, Any]
) -> None:
    killed = runs.fit(str(tmp_path), STEPS, at_end=True, **more)
    assert not killed.exported
    resumed = runs.fit(str(tmp_path), STEPS, **more)
    assert_same_end(resumed, runs.whole(STEPS, **more))
    again = runs.fit(str(tmp_path), STEPS, **more)
    assert_same_end(again, runs.whole(STEPS, **more))
    for result in (resumed, again):
        assert not any(name == "batch" for name, _ in result.seen)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "hook"), [(4, "batch end"), *exhaustive((2, "batch end"), (3, "epoch end"))])
def test_an_epochs_round_is_logged_though_the_run_was_killed_within_the_epoch_or_at_its_end(
    tmp_path: Path, step: int, hook: str
) -> None:
    online = Online(tmp_path)

    def fit(name: str, moment: tuple[int, str] | None) -> tuple[dict[tuple[str, int], str], int]:
        folder, sampler = tmp_path / name, Sampler()
        kill = Kill(folder, moment, every_n_train_steps=1)
        trainer = tiny.trainer(
            callbacks=[online.sampling(sampler), kill],
            logger=CSVLogger(folder),
            enable_checkpointing=True,
            default_root_dir=folder,
            max_epochs=2,
            log_every_n_steps=1,
            reload_dataloaders_every_n_epochs=1,
        )
        start = newest_checkpoint(folder)
        try:
            trainer.fit(online.module(), datamodule=online.data(), ckpt_path=start)
        except KilledError:
            assert moment is not None
        return rows_of(folder), len(sampler.asked)

    whole, asked = fit("whole", None)
    assert asked == 38  # two rounds of 15 prompts and 4 monitors
    assert sum(key == "on_policy/score" for key, _ in whole) == 2
    assert sum(key == "on_policy/kl" for key, _ in whole) == 2
    fit("killed", (step, hook))
    resumed, asked = fit("killed", None)
    assert resumed == whole
    finished, asked = fit("killed", None)  # a finished run asks nobody anything
    assert (finished, asked) == (whole, 0)
    summaries = [
        [json.loads(path.read_text())["metrics"] for path in sorted((tmp_path / name / "rounds").glob("*.json"))]
        for name in ("whole", "killed")
    ]
    assert summaries[0] == summaries[1]
