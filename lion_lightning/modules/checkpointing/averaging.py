"""Lightning's callbacks that average weights: which of them fit, and what runs before and after them."""

from __future__ import annotations

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn


def refuse_averaging(trainer: Trainer) -> None:
    """Refuse averaging that would average nothing, or shards of weights."""
    if trainer.state.fn != TrainerFn.FITTING:
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging):
            raise MisconfigurationException(
                "StochasticWeightAveraging copies the module before configure_model() has built the policy, so it "
                "would average nothing; use lightning.pytorch.callbacks.WeightAveraging (equal weights, as SWA) or "
                "EMAWeightAveraging"
            )
        if isinstance(callback, WeightAveraging) and isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            raise MisconfigurationException(
                f"{type(callback).__name__} does not work with weights that are split over ranks, as "
                f"{type(trainer.strategy).__name__} splits them; use trainer.strategy: ddp, or leave it out"
            )


def warn_of_no_average(trainer: Trainer) -> None:
    """Say so if nothing was ever averaged: Lightning then ends a run with the weights that it began with."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        average = getattr(callback, "_average_model", None) if isinstance(callback, WeightAveraging) else None
        if average is not None and int(average.n_averaged) == 0:
            rank_zero_warn(
                f"{type(callback).__name__} has never updated its average, so the run ends with the weights that it "
                "began with, and so do its checkpoints and export: let it start at an earlier step or epoch"
            )


def run_first(trainer: Trainer, callback: Callback) -> None:
    """Have a callback's hooks run before those of the others, wherever it is listed.

    At the end of a validation it then finds the weights that were validated, not those that averaging puts back. Called
    in ``setup``: the trainer gets a new list, since Lightning goes through the old one meanwhile.
    """
    trainer.callbacks = [callback, *_others(trainer, callback)]  # type: ignore[attr-defined]


def run_last(trainer: Trainer, callback: Callback) -> None:
    """Have a callback's hooks run after those of the others, wherever it is listed.

    At the end of training it then finds the weights that are the run's result, e.g. averaged ones. Called in ``setup``.
    """
    trainer.callbacks = [*_others(trainer, callback), callback]  # type: ignore[attr-defined]


def _others(trainer: Trainer, callback: Callback) -> list[Callback]:
    return [one for one in trainer.callbacks if one is not callback]  # type: ignore[attr-defined]
