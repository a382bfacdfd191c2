"""Fine-tuning killed anywhere and resumed: the same samples, and the same weights and optimizer, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint

from lion_lightning import PolicySpec, SFTModule, TokenizerSpec
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.models.lora import LoRASpec
from lion_lightning.modules.optimization.schedules import CosineWithWarmup
from lion_lightning.types import PackedBatch, Sample, SampleSegment
from tests import tiny
from tests.marks import exhaustive, slow

pytestmark = pytest.mark.filterwarnings("ignore")

EPOCH = 6
LENGTHS = np.random.default_rng(0).integers(
    2, 9, size=23
)  # in rows of 8: 17 rows, so 6 batches of 3 rows, the last of 2

EVERY_STEP = {"every_n_train_steps": 1}
EPOCH_END = {"save_on_train_epoch_end": True}
AFTER_VALIDATION = {"save_on_train_epoch_end": False}


class KilledError(Exception):
    """Stands for SIGKILL: nothing is saved after it."""


class Record(Callback):
    """Writes down what is trained, and kills the run before the batch of this number, counted over epochs."""

    def __init__(self, kill: int | None) -> None:
        self.kill = kill
        self.trained: list[tuple[int, ...]] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch * EPOCH + batch_idx == self.kill:
            raise KilledError
        assert isinstance(batch, PackedBatch)
        self.trained.append((trainer.current_epoch, batch_idx, *batch.sample_indices))


Run = tuple[Trainer, Record]


class Runs:
    """Makes runs of two epochs, each in a folder; a run goes on from the last checkpoint of its folder."""

    schedule: Any = CosineWithWarmup

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = TokenizerSpec(str(tiny.tokenizer_folder(folder / "tokenizer")))
        rng = np.random.default_rng(1)
        self.samples = [
            Sample((SampleSegment(rng.integers(3, tiny.VOCABULARY, n).astype(np.int32), rng.random(n) < 0.7),), index)
            for index, n in enumerate(LENGTHS.tolist())
        ]
        for index, sample in enumerate(self.samples[::3]):  # targets of some documents have weights
            weights = np.full(sample.length, 0.5 + index, np.float32)
            self.samples[3 * index] = replace(sample, segments=(sample.segments[0]._replace(weights=weights),))
        self.wholes: dict[str, Run] = {}

    def whole(self, save: dict[str, Any], **options: Any) -> Run:
        """The run that nobody stops, made once for all tests that compare with it."""
        key = repr((save, options))
        if key not in self.wholes:
            self.wholes[key] = self.fit(f"whole {len(self.wholes)}", save, **options)
            assert len(set(self.wholes[key][1].trained)) == len(self.wholes[key][1].trained) == 2 * EPOCH
        return self.wholes[key]

    def fit(
        self,
        folder: str,
        save: dict[str, Any],
        kill: int | None = None,
        lora: LoRASpec | None = None,
        workers: int = 0,
        windows: dict[int, int] | None = None,
        **options: Any,
    ) -> Run:
        torch.manual_seed(0)
        module = SFTModule(
            PolicySpec(config=tiny.config(num_hidden_layers=1), lora=lora),
            tokenizer=self.tokenizer,
            optimizer=partial(torch.optim.AdamW, lr=1e-2),
            lr_scheduler=self.schedule,
        )
        record = Record(kill)
        callbacks: list[Callback] = [
            ModelCheckpoint(self.folder / folder, save_last=True, save_top_k=-1, **save),
            record,
        ]
        if windows is not None:
            callbacks.append(GradientAccumulationScheduler(windows))
            options["accumulate_grad_batches"] = 1
        settings = {"max_epochs": 2, "num_sanity_val_steps": 0, "limit_val_batches": 1, "accumulate_grad_batches": 2}
        trainer = tiny.trainer(callbacks=callbacks, **({"enable_checkpointing": True} | settings | options))
        try:
            trainer.fit(module, self.loader(True, workers), self.loader(False, 0), ckpt_path="last")
        except KilledError:
            assert kill is not None
        return trainer, record

    def loader(self, shuffle: bool, workers: int) -> Any:
        return PackedLoader(
            self.samples, LENGTHS, capacity=8, batch_size=3, shuffle=shuffle, seed=5, num_workers=workers
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Weights and all of the optimizer's state, by name."""
    weights = dict(trainer.lightning_module.state_dict())
    moments = trainer.optimizers[0].state_dict()["state"]
    return weights | {f"{name} of {key}": torch.as_tensor(v) for key, s in moments.items() for name, v in s.items()}


def assert_same_end(resumed: Run, whole: Run) -> None:
    assert resumed[1].trained == whole[1].trained[-len(resumed[1].trained) :]
    mine, other = state(resumed[0]), state(whole[0])
    assert mine.keys() == other.keys()
    assert [name for name in mine if not torch.equal(mine[name], other[name])] == []
    assert (
        resumed[0].lr_scheduler_configs[0].scheduler.state_dict()
        == whole[0].lr_scheduler_configs[0].scheduler.state_dict()
    )
    assert resumed[0].global_step == whole[0].global_step
    assert resumed[0].callback_metrics["train/loss"] == whole[0].callback_metrics["train/loss"]


def killed(runs: Runs, folder: Path, kills: Sequence[int], save: dict[str, Any], **options: Any) -> None:
    """Kill a run, resume it and kill it again, ..., resume it; compare with the run that nobody kills."""
    whole = runs.whole(save, **options)
    for kill in kills:
        runs.fit(str(folder), save, kill, **options)
    resumed = runs.fit(str(folder), save, **options)
    assert 0 < len(resumed[1].trained) < 2 * EPOCH  # it did go on from a checkpoint, and had something to do
    assert_same_end(resumed, whole)


@pytest.mark.parametrize("kill", [3, EPOCH, *exhaustive(EPOCH - 1, EPOCH + 1, 2 * EPOCH - 1)])
def test_a_killed_run_ends_as_one_that_was_not(runs: Runs, tmp_path: Path, kill: int) -> None:
    killed(runs, tmp_path, [kill], EVERY_STEP)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [EPOCH + 3, *exhaustive(3, EPOCH)])
def test_dropout_of_a_resumed_lora_draws_what_it_would_have_drawn(runs: Runs, tmp_path: Path, kill: int) -> None:
    killed(runs, tmp_path, [kill], EVERY_STEP, lora=LoRASpec(r=4, dropout=0.3))


@pytest.mark.slow
def test_dropout_is_at_work_in_the_test_above(runs: Runs) -> None:
    ends = [runs.whole(EVERY_STEP, lora=LoRASpec(r=4, dropout=p))[0].callback_metrics["train/loss"] for p in (0.3, 0.0)]
    assert ends[0] != ends[1]


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
@pytest.mark.parametrize("save", [EVERY_STEP, EPOCH_END, AFTER_VALIDATION], ids=["step", "epoch", "validation"])
@pytest.mark.parametrize("kills", [[EPOCH, EPOCH + 1], *exhaustive([EPOCH + 4])])
def test_a_run_that_counts_steps(runs: Runs, tmp_path: Path, save: dict[str, Any], kills: Sequence[int]) -> None:
    killed(runs, tmp_path, kills, save, max_epochs=-1, max_steps=EPOCH)


@pytest.mark.parametrize(
    ("accumulate", "interval", "epoch"), [(2, 3, 0), *slow((3, 5, 1)), *exhaustive((2, 3, 1), (4, 5, 0))]
)
def test_a_checkpoint_within_an_accumulation_window(
    runs: Runs, tmp_path: Path, accumulate: int, interval: int, epoch: int
) -> None:
    """Validation after batch 3 or 5 saves one; Lightning keeps no gradients in it."""
    options = {"val_check_interval": interval, "accumulate_grad_batches": accumulate}
    killed(runs, tmp_path, [epoch * EPOCH + interval], AFTER_VALIDATION, **options)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [EPOCH + 3, *exhaustive(3, EPOCH)])
def test_accumulation_that_changes_with_the_epoch_is_the_epochs_own_after_a_resume_within_it(
    runs: Runs, tmp_path: Path, kill: int
) -> None:
    """Lightning sets it where an epoch starts, which one that is resumed does not."""
    killed(runs, tmp_path, [kill], EVERY_STEP, windows={0: 2, 1: 3})


@pytest.mark.slow
@pytest.mark.parametrize("kill", [2, EPOCH, *exhaustive(3, EPOCH - 1, EPOCH + 3)])
def test_a_checkpoint_that_an_exception_saved_in_the_middle_of_a_batch(runs: Runs, tmp_path: Path, kill: int) -> None:
    """The batch was handed out and not trained; and where it is the second of a window, the first is lost too."""
    killed(runs, tmp_path, [kill], EPOCH_END | {"save_on_exception": True})


@pytest.mark.slow
@pytest.mark.parametrize("save", [EVERY_STEP, EPOCH_END, AFTER_VALIDATION], ids=["step", "epoch", "validation"])
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
