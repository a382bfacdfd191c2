"""Number of optimizer steps of a run, by Lightning's rules for epochs, limits and accumulation."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler


def accumulation(trainer: Trainer, epoch: int) -> int:
    """Micro-batches of an optimizer step in an epoch."""
    callbacks: Any = getattr(trainer, "callbacks", ())
    schedules = [one for one in callbacks if isinstance(one, GradientAccumulationScheduler)]
    return schedules[-1].get_accumulate_grad_batches(epoch) if schedules else trainer.accumulate_grad_batches


def run_length(trainer: Trainer) -> float:
    """Optimizer steps of the run from its start; infinity where nothing ends it.

    The steps to come are counted as the trainer is set up now: a resumed run may have other batches or another
    accumulation than the steps that are done had.
    """
    fit, batches = trainer.fit_loop, trainer.fit_loop.max_batches
    epochs = trainer.max_epochs if trainer.max_epochs is not None else -1
    left = math.inf
    if epochs >= 0 and not math.isinf(batches):
        present = trainer.current_epoch
        counts = [math.ceil(batches / accumulation(trainer, epoch)) for epoch in range(present, epochs)]
        within = fit.restarted_mid_epoch or fit.restarted_on_epoch_end
        done = fit.epoch_loop.batch_progress.current.ready // accumulation(trainer, present) if within else 0
        left = max(0, sum(counts) - done)
    length = trainer.global_step + left
    return min(length, trainer.max_steps) if trainer.max_steps >= 0 else length


def epoch_steps(trainer: Trainer) -> float:
    """Optimizer steps of the present epoch."""
    return math.ceil(trainer.fit_loop.max_batches / accumulation(trainer, trainer.current_epoch))
