"""References in a LightningModule of another project."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim import SGD, Optimizer

from lion_lightning import CachedReference, FrozenReference, MixedReference, PolicyModel, PolicySpec, Reference
from lion_lightning.callbacks import PrecomputeReference
from lion_lightning.losses import SigmoidLoss
from lion_lightning.ops.logprobs import pair_logps
from lion_lightning.references.base import stored_model
from lion_lightning.types import PackedBatch
from tests import tiny
from tests.unit.callbacks.conftest import Bench

ROWS = [replace(tiny.pairs((3, 2, 4), (2, 1, 3), seed=seed), capacity=32) for seed in range(3)]


class Preferring(LightningModule):
    """A module of another project, whose model is built before the Trainer comes, or by it."""

    def __init__(self, folder: Path, reference: Reference, late: bool = False) -> None:
        super().__init__()
        self.folder, self.reference, self.loss = str(folder), reference, SigmoidLoss()
        self.margins: list[float] = []
        if not late:
            self.configure_own()

    def configure_own(self) -> None:
        self.model: PolicyModel = PolicySpec(self.folder).build()

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        policy = pair_logps(self.model(batch), batch)
        reference = pair_logps(self.reference(batch, self.model), batch)
        self.margins += self.loss.rewards(policy, reference).margin.tolist()
        losses: Tensor = self.loss(policy, reference)
        return losses.sum()

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        self.log("val_loss", self.loss(*(pair_logps(each, batch) for each in self.both(batch))).mean(), batch_size=2)

    def both(self, batch: PackedBatch) -> tuple[Any, Any]:
        return self.model(batch), self.reference(batch, self.model)

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.parameters(), 0.5)


class Late(Preferring):
    """The same, built in ``configure_model``."""

    def configure_model(self) -> None:
        if not hasattr(self, "model"):
            self.configure_own()


@pytest.fixture
def start(tmp_path: Path) -> Path:
    tiny.policy().causal_lm.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def fit(bench: Bench, module: Any, *callbacks: Any, **options: Any) -> Any:
    resumed = {"ckpt_path": options.pop("ckpt_path", None)}
    trainer = bench.trainer(PrecomputeReference(), *callbacks, logger=False, num_sanity_val_steps=0, **options)
    trainer.fit(module, tiny.Rows(ROWS), tiny.Rows(ROWS[:1]), **resumed)
    return module


@pytest.mark.parametrize("late", [False, True])
def test_a_cached_reference_gives_the_margins_of_a_frozen_copy(bench: Bench, start: Path, late: bool) -> None:
    kind = Late if late else Preferring
    cached = fit(bench, kind(start, CachedReference(cache_dir=bench.folder), late), max_epochs=2).margins
    frozen = fit(bench, kind(start, FrozenReference(), late), max_epochs=2).margins
    assert cached == pytest.approx(frozen, abs=1e-5)
    assert cached[:2] == pytest.approx([0.0, 0.0], abs=1e-5)
    assert max(map(abs, cached)) > 0.1


def test_a_resumed_run_compares_with_the_model_that_the_first_began_with(bench: Bench, start: Path) -> None:
    whole = fit(bench, Preferring(start, CachedReference(cache_dir=bench.folder)), max_epochs=2).margins
    saver = ModelCheckpoint(bench.folder, "first")
    fit(bench, Preferring(start, CachedReference(cache_dir=bench.folder)), saver, enable_checkpointing=True)
    other_cache = bench.folder / "other"  # where all must be computed anew, from a model that is loaded again
    module = Preferring(start, CachedReference(cache_dir=other_cache))
    fit(bench, module, max_epochs=2, ckpt_path=bench.folder / "first.ckpt")
    assert module.margins == pytest.approx(whole[len(whole) // 2 :], abs=1e-5)


def test_a_reference_follows_the_steps_and_epochs_are_computed_anew_where_loaders_are(
    bench: Bench, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles, steps = [], []
    monkeypatch.setattr(CachedReference, "precompute", lambda self, batches, policy, ranks, title: titles.append(title))
    monkeypatch.setattr(CachedReference, "forward", lambda self, batch, policy: policy(batch))
    monkeypatch.setattr(MixedReference, "after_step", lambda self, step, policy: steps.append(step))
    module = Preferring(start, CachedReference(cache_dir=bench.folder))
    module.follower = MixedReference()
    fit(bench, module, max_epochs=2, reload_dataloaders_every_n_epochs=1, accumulate_grad_batches=2)
    assert titles == ["epoch 0", "evaluation", "epoch 1", "evaluation"]
    assert steps == [1, 2, 3, 4]  # 3 batches an epoch, of which the last is a step of its own


def test_what_it_cannot_run_is_refused_before_training(bench: Bench, start: Path) -> None:
    without = Preferring(start, CachedReference())
    del without.reference
    for module, message in (
        (bench.module(), "SFTModule runs its reference itself; take the callback out"),
        (without, "Preferring has no reference; set one in __init__"),
    ):
        with pytest.raises(MisconfigurationException, match=message):
            fit(bench, module)
    frozen = Preferring(start, CachedReference())
    frozen.model.requires_grad_(False)
    with pytest.raises(MisconfigurationException, match="PrecomputeReference: Preferring holds no language model that"):
        fit(bench, frozen)


def test_a_model_that_was_not_loaded_from_anywhere_cannot_be_loaded_again() -> None:
    with pytest.raises(ValueError, match="was not loaded from a folder or the hub"):
        stored_model(tiny.policy())(None)
