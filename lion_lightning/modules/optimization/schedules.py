"""Learning-rate schedules with warmup that take their length from the run."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override


class WarmupSchedule(LRScheduler):
    """A linear warmup, then a decay that a subclass defines. Steps are optimizer steps.

    A warmup of ``w`` steps has the rates ``1, 2, ..., w`` over ``w + 1`` of the peak, which the step after it has: no
    step is spent at a rate of zero, neither the first nor the last. These are the rates of transformers' schedules of
    the same name, begun a step later and ended a step earlier.

    In YAML the length is left out: ``AlignmentModule`` fills in the number of optimizer steps of the run.

    Args:
        optimizer: The optimizer; its learning rates are the peak.
        warmup: Share of the run (below 1) or number of steps (1 and more) to warm up for.
        total_steps: Length of the run; None to have the module fill it in.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.1, total_steps: int | None = None) -> None:
        if not 0 <= warmup < math.inf:
            raise ValueError(f"lr_scheduler.warmup is {warmup}; give a share of the run or a number of steps, from 0")
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"lr_scheduler.total_steps is {total_steps}; give at least 1, or leave it out")
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
        if self.total_steps is None and step > 0:  # as when another schedule runs this one
            raise ValueError(f"lr_scheduler: {type(self).__name__} was not told how long the run is; set total_steps")
        total = self.total_steps or 1
        warmup = self.warmup if self.warmup >= 1 else math.ceil(self.warmup * total)  # in steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return self.decay(min(1.0, (step - warmup) / max(1, total - warmup)))

    def begin(self, total_steps: int) -> None:
        """Take in how long the run is, which changes the present rate too.

        Args:
            total_steps: Optimizer steps of the run from its start.
        """
        self.total_steps = total_steps
        self.set_rates()

    def set_rates(self) -> None:
        """Give the optimizer the rates of the present step anew, after a change of what they follow from."""
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    @override
    def get_lr(self) -> list[float | Tensor]:
        """Learning rate of each parameter group (torch calls this)."""
        return [rate * self.factor(self.last_epoch) for rate in self.base_lrs]

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at a checkpoint's step, with the peak, the warmup and the length of this run."""
        super().load_state_dict({name: state_dict[name] for name in ("last_epoch", "_step_count")})

    @override
    def state_dict(self) -> dict[str, Any]:
        """State without the length of the run, which is the new run's when a checkpoint is resumed."""
        state = super().state_dict()
        del state["total_steps"]
        return state


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
        if not 0 <= minimum <= 1:
            raise ValueError(f"lr_scheduler.minimum is {minimum}; give a share of the peak, from 0 to 1")
        self.minimum = minimum
        super().__init__(optimizer, warmup, total_steps)

    @override
    def decay(self, progress: float) -> float:
        return self.minimum + (1 - self.minimum) * (1 + math.cos(math.pi * progress)) / 2


class LinearWithWarmup(WarmupSchedule):
    """A straight line from the peak to zero at the end of the run."""

    @override
    def decay(self, progress: float) -> float:
        return 1 - progress


class ConstantWithWarmup(WarmupSchedule):
    """The peak, to the end."""

    @override
    def decay(self, progress: float) -> float:
        return 1.0
