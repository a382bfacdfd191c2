"""A step's gradients are the mean over its items, however they are split over micro-batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import SGD, Optimizer

from lion_lightning import PolicyModel
from lion_lightning.callbacks import StepMean
from lion_lightning.types import PackedBatch
from tests import tiny
from tests.unit.callbacks.conftest import Bench


class Summed(LightningModule):
    """A module of another project that returns sums."""

    def __init__(self) -> None:
        super().__init__()
        self.model: PolicyModel = tiny.policy()

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        logps: Tensor = self.model(batch).values
        return -logps.sum()

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.parameters(), 0.1)


class Gradients(Callback):
    """Keeps the gradient of the head at each step."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        self.found.append(pl_module.model.head()[0].grad.clone())


def short(seed: int, targets: int) -> PackedBatch:
    batch = tiny.row(seed=seed)
    kept = {name: getattr(batch, name)[:targets] for name in ("targets", "logit_positions", "target_segments")}
    return replace(batch, **kept)


def test_a_step_over_uneven_micro_batches_is_the_mean_over_all_their_tokens(bench: Bench) -> None:
    rows = [short(0, 2), short(1, 20), short(2, 7)]  # the last is a step of its own
    watch = Gradients()
    trainer = bench.trainer(StepMean(), watch, accumulate_grad_batches=2)
    bench.fit(trainer, Summed(), rows)
    model = Summed().model
    (-(model(rows[0]).values.sum() + model(rows[1]).values.sum()) / 22).backward()
    torch.testing.assert_close(watch.found[0], model.head()[0].grad)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-0.1)
    model.zero_grad()
    (-model(rows[2]).values.sum() / 7).backward()
    torch.testing.assert_close(watch.found[1], model.head()[0].grad)


@pytest.mark.parametrize(("items", "count"), [("targets", 10), ("pairs", 2), ("answers", 4), ("samples", 3)])
def test_what_is_counted_is_what_was_asked_for(bench: Bench, items: Any, count: int) -> None:
    rows = [replace(tiny.pairs((3, 2, 4), (2, 1, 3)), sample_indices=(0, 1, 2))]
    found = []
    for callbacks in ([StepMean(items)], []):
        watch = Gradients()
        bench.fit(bench.trainer(*callbacks, watch), Summed(), rows)
        found += watch.found
    torch.testing.assert_close(found[0] * count, found[1])


def test_a_micro_batch_that_was_skipped_does_not_count(bench: Bench) -> None:
    class Skips(Summed):
        def training_step(self, batch: PackedBatch, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) if batch_idx else None

    rows = [short(0, 20), short(1, 5)]
    watch = Gradients()
    bench.fit(bench.trainer(StepMean(), watch, accumulate_grad_batches=2), Skips(), rows)
    model = Summed().model
    (-model(rows[1]).values.sum() / 5).backward()
    torch.testing.assert_close(watch.found[0], model.head()[0].grad)


@pytest.mark.parametrize("items", ["pairs", "answers"])
def test_pairs_of_rows_that_have_none_are_refused_instead_of_a_gradient_of_zero(bench: Bench, items: Any) -> None:
    with pytest.raises(MisconfigurationException, match=rf'StepMean\("{items}"\): the batches of a step have no'):
        bench.fit(bench.trainer(StepMean(items)), Summed(), [tiny.row()])


def test_modules_that_make_their_steps_themselves_are_refused(bench: Bench) -> None:
    with pytest.raises(MisconfigurationException, match="SFTModule divides its gradients by the items"):
        bench.fit(bench.trainer(StepMean()))
    manual = Summed()
    manual.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="Summed optimizes manually"):
        bench.fit(bench.trainer(StepMean()), manual)
