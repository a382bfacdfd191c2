"""Learning-rate schedules with warmup that take their length from the run."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupSchedule(LRScheduler):
    """A linear warmup from zero, then a decay that a subclass defines. Steps are optimizer steps.

    In YAML the length is left out: ``AlignmentModule`` fills in the number of optimizer steps of the run.

    Args:
        optimizer: The optimizer; its learning rates are the peak.
        warmup: Share of the run (below 1) or number of steps (1 and more) to warm up for.
        total_steps: Length of the run; None to have the module fill it in.

    Raises:
        ValueError: If ``warmup`` is negative.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.1, total_steps: int | None = None) -> None:
        if warmup < 0:
            raise ValueError(
                f"lr_scheduler.warmup: {warmup} is negative; give a share of the run or a number of steps."
            )
        self.warmup = warmup
        self.total_steps = total_steps
        super().__init__(optimizer)

    @abstractmethod
    def decay(self, progress: float) -> float:
        """Factor after the warmup.

        Args:
            progress: 0 at the end of the warmup, 1 at the end of the run.
        """

    def factor(self, step: int) -> float:
        """Learning rate over its peak, at a step counted from 0."""
        total = self.total_steps or 1
        warmup = self.warmup if self.warmup >= 1 else math.ceil(self.warmup * total)
        if step < warmup:
            return step / warmup
        return self.decay(min(1.0, (step - warmup) / max(1, total - warmup)))

    def get_lr(self) -> list[float | Tensor]:
        """Learning rate of each parameter group (torch calls this)."""
        return [rate * self.factor(self.last_epoch) for rate in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """State without the length of the run, which is the new run's when a checkpoint is resumed."""
        return {key: value for key, value in super().state_dict().items() if key != "total_steps"}


class CosineWithWarmup(WarmupSchedule):
    """Half a cosine from the peak to ``minimum`` times the peak (SGDR without restarts, arXiv 1608.03983, eq. 5).

    Args:
        optimizer: See :class:`WarmupSchedule`.
        warmup: See :class:`WarmupSchedule`.
        minimum: Learning rate at the end, over the peak.
        total_steps: See :class:`WarmupSchedule`.
    """

    def __init__(
        self, optimizer: Optimizer, warmup: float = 0.1, minimum: float = 0.0, total_steps: int | None = None
    ) -> None:
        self.minimum = minimum
        super().__init__(optimizer, warmup, total_steps)

    def decay(self, progress: float) -> float:
        """See the base class."""
        return self.minimum + (1 - self.minimum) * (1 + math.cos(math.pi * progress)) / 2


class LinearWithWarmup(WarmupSchedule):
    """A straight line from the peak to zero at the end of the run."""

    def decay(self, progress: float) -> float:
        """See the base class."""
        return 1 - progress


class ConstantWithWarmup(WarmupSchedule):
    """The peak, to the end."""

    def decay(self, progress: float) -> float:
        """See the base class."""
        return 1.0
