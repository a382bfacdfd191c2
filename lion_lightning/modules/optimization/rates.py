"""Warnings of learning rates that train nothing, or never what was asked for."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lion_lightning.modules.optimization.run_length import run_length
from lion_lightning.modules.optimization.schedules import WarmupSchedule


class RateWatch:
    """Follows the rates of a run's steps, of whatever schedule they are."""

    def __init__(self) -> None:
        self.largest: float | None = None

    def begin(self, trainer: Trainer) -> None:
        """Look ahead."""
        self.largest = None
        length = run_length(trainer)
        if length - trainer.global_step == 1 and not any(map(_rate, trainer.optimizers)):
            rank_zero_warn(
                "lr_scheduler: the run makes one optimizer step, and its learning rate is 0, so nothing is trained; "
                "give the optimizer a rate, or a schedule that begins above 0, or make more steps"
            )
        for config in trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if isinstance(schedule, WarmupSchedule) and schedule.warmup >= (schedule.total_steps or 1) > 1:
                rank_zero_warn(
                    f"lr_scheduler.warmup: {schedule.warmup:g} steps of warmup in a run of {schedule.total_steps}, "
                    "which never reaches the learning rate that was asked for; lower warmup, or make more steps"
                )

    def step(self, optimizer: Optimizer) -> None:
        """Take in the rate of a step, before it is made."""
        self.largest = max(self.largest or 0.0, _rate(optimizer))

    def end(self) -> None:
        """Look back."""
        if self.largest == 0:
            rank_zero_warn("no step of this run had a learning rate above 0: the weights are those that it began with")


def _rate(optimizer: Optimizer) -> float:
    """The largest of the parameter groups' rates."""
    return max(float(group["lr"]) for group in optimizer.param_groups)
