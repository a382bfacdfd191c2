"""Batches of a Trainer's data outside of its loops, which references are precomputed on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lion_lightning.types import PackedBatch

Batches = Iterable[PackedBatch]


def refuse_rounds(module: LightningModule, data: Any, *, unless: str | None = None) -> None:
    """Refuse data whose answers are sampled between epochs, for a module that does not follow them.

    Args:
        module: What is to train on it.
        data: The data module.
        unless: What the module does train on of a round, ``"pairs"`` or ``"groups"``.

    Raises:
        MisconfigurationException: The module does not, which is said before anything is sampled.
    """
    items = getattr(data, "items", "pairs")
    if module.trainer.state.fn == TrainerFn.FITTING and hasattr(data, "rounds") and items != unless:
        groups = items == "groups"
        what, module_name = ("groups", "OnlineGroupModule") if groups else ("preference pairs", "OnlineDPOModule")
        raise MisconfigurationException(
            f"{type(data).__name__} gives {what} that are sampled between epochs, which {type(module).__name__} does "
            f"not train on as it is; use {module_name}"
        )


def refuse_streams(module: LightningModule, data: Any) -> None:
    """Refuse data that is read while training, for a reference that is computed on all of it before.

    Raises:
        MisconfigurationException: If it streams.
    """
    if module.trainer.state.fn == TrainerFn.FITTING and getattr(data, "stream", None):
        raise MisconfigurationException(
            "data.sources stream, and CachedReference computes the log-probs of all answers before training; set "
            "model.reference to lion_lightning.FrozenReference, or AdapterOffReference where the policy has LoRA"
        )


def data_source(loop: Any) -> Any:
    """The source that a loop of a Trainer gets its loaders from: ``is_defined()``, and ``dataloader()`` for a new one.

    A private attribute of Lightning, seen in 2.6.6; a test pins the version. A Trainer's public properties give the
    loader that the loop itself iterates over, and set it up before a checkpoint's state has reached it.
    """
    return loop._data_source


def train_batches(trainer: Trainer) -> Batches:
    """Batches of this rank with all pairs that the run can train on: an epoch, or less if ``max_steps`` ends in it."""
    reached = trainer.max_steps * trainer.accumulate_grad_batches
    return _at_most(data_source(trainer.fit_loop).dataloader(), reached if reached > 0 else math.inf)


def epoch_batches(trainer: Trainer, limited: bool = True) -> Batches:
    """Batches of this rank that the present epoch trains on, from a loader apart from the one that trains.

    Args:
        trainer: The trainer.
        limited: Whether to leave out those that ``limit_train_batches`` does; in other epochs it leaves out others.
    """
    loader: Any = data_source(trainer.fit_loop).dataloader()
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(trainer.current_epoch)
    return _at_most(loader, trainer.fit_loop.max_batches) if limited else loader


def _at_most(loader: Any, count: float) -> Batches:
    known = hasattr(loader, "__len__")  # a stream has no length
    return _First(loader, int(count)) if known and count < len(loader) else loader


def evaluation_batches(trainer: Trainer) -> list[Batches]:
    """Batches of this rank of each set that validates (or tests, where the trainer tests)."""
    loops: dict[Any, Any] = {TrainerFn.VALIDATING: trainer.validate_loop, TrainerFn.TESTING: trainer.test_loop}
    source = data_source(loops.get(trainer.state.fn, trainer.fit_loop.epoch_loop.val_loop))
    limit = trainer.limit_test_batches if trainer.state.fn == TrainerFn.TESTING else trainer.limit_val_batches
    loaders = source.dataloader() if source.instance is not None and source.is_defined() and limit else []
    return list(loaders) if isinstance(loaders, list | tuple) else [loaders]


class CheckedBatches:
    """Batches of a loader, each of which is checked before it is used; no batch is read for the check alone.

    Args:
        batches: The loader.
        check: Raises an error about a batch that is not right.
    """

    def __init__(self, batches: Batches, check: Callable[[PackedBatch], None]) -> None:
        self.batches, self.check = batches, check

    def __iter__(self) -> Iterator[PackedBatch]:
        """Check each batch as it comes."""
        for batch in self.batches:
            self.check(batch)
            yield batch

    def __len__(self) -> int:
        """Number of batches, where the loader has one."""
        return len(self.batches)  # type: ignore[arg-type]


class _First:
    """The first batches of a loader."""

    def __init__(self, batches: Batches, count: int) -> None:
        self.batches, self.count = batches, count

    def __iter__(self) -> Iterator[PackedBatch]:
        return islice(iter(self.batches), self.count)

    def __len__(self) -> int:
        return self.count
