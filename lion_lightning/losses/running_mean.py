"""A mean over the run, the same on all ranks and however a step is split."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from typing_extensions import override


class RunningMean(nn.Module):
    """Mean of what all ranks saw in the optimizer steps before this one; 0 until something was seen.

    It is part of the checkpoint and stays fp32, whatever a model is cast to.

    Attributes:
        totals: ``(2,)`` fp32 sum and number of the values of the steps so far.
    """

    totals: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("totals", torch.zeros(2))
        # This step's share. Not a buffer: DDP would replace it by that of rank 0.
        self._pending = torch.zeros(2)

    @property
    def mean(self) -> Tensor:
        """The mean, a scalar."""
        return self.totals[0] / self.totals[1].clamp_min(1)

    def add(self, values: Tensor, counted: Tensor | None = None) -> None:
        """Take values into this step's share, in training mode alone.

        Args:
            values: Any shape.
            counted: Which of them count, bool of the same shape; None for all.
        """
        if not self.training:
            return
        seen = values.detach()
        number = torch.full_like(self.totals[1], seen.numel()) if counted is None else counted.sum()
        total = seen.sum() if counted is None else (seen * counted).sum()
        self._pending = self._pending.to(seen.device) + torch.stack([total.float(), number.float()])

    def end_step(self, add_up: Callable[[Tensor], Tensor]) -> None:
        """Take what all ranks saw in this step into the mean.

        Args:
            add_up: Sums a tensor over all ranks.
        """
        self.totals = self.totals + add_up(self._pending.to(self.totals.device))
        self._pending = torch.zeros_like(self.totals)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RunningMean:
        """Move to another device, but stay fp32: bf16 cannot count past 256."""
        exact = self.totals
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.totals = exact.to(self.totals.device)
        return self
