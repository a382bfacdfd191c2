"""Means over the items of a global step (training) and of a whole data set (evaluation)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from typing_extensions import override

from lion_lightning.types import LossOutput

Finishers = Mapping[str, Callable[[Tensor], Tensor]]
"""By metric, what to do to its mean before it is logged."""


class StepTotals:
    """Sums over the micro-batches of one optimizer step; a new step starts by itself after :meth:`reduce`."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._reduced = True

    def add(self, output: LossOutput) -> None:
        """Take in a micro-batch."""
        if self._reduced:
            self._totals, self._reduced = {}, False
        values = {"weight": output.weight, "loss": output.total, **output.metrics}
        for name, value in values.items():
            value = value.detach().double()
            self._totals[name] = self._totals[name] + value if name in self._totals else value

    def reduce(self, strategy: Strategy) -> None:
        """Add up over ranks, in one collective; every rank has the same keys, since it ran the same module."""
        if self._reduced:
            return
        names = sorted(self._totals)
        vector = strategy.reduce(torch.stack([self._totals[name] for name in names]), reduce_op="sum")
        assert isinstance(vector, Tensor)
        self._totals = dict(zip(names, vector.unbind(), strict=True))
        self._reduced = True

    @property
    def weight(self) -> Tensor:
        """Items of the step."""
        return self._totals["weight"]

    def waited_for(self, number: Tensor) -> tuple[float, float]:
        """A number of the step and its total loss, as numbers of the process: a GPU is waited for once.

        Args:
            number: A scalar that was made of :attr:`weight`.
        """
        loss = self._totals["loss"]
        first, second = torch.stack([number.to(loss), loss]).tolist()
        return first, second

    def means(self, finishers: Finishers) -> dict[str, Tensor]:
        """Loss and metrics, as means over the step's items."""
        weight = self.weight.clamp_min(1.0)
        means = {name: total / weight for name, total in self._totals.items() if name != "weight"}
        return {name: finishers.get(name, _same)(mean).float() for name, mean in means.items()}


class StageMeter(nn.Module):
    """Torchmetrics for one evaluation stage, made when the first batch shows which metrics there are.

    Args:
        finishers: By metric, what to do to its mean.
    """

    def __init__(self, finishers: Finishers) -> None:
        super().__init__()
        self.finishers = dict(finishers)
        self.metrics = nn.ModuleDict()

    def update(self, output: LossOutput) -> dict[str, Metric]:
        """Take in a batch and give the metrics to log, by name."""
        totals = {"loss": output.total, **output.metrics}
        for name, total in totals.items():
            key = name.replace(".", "_")
            if key not in self.metrics:
                self.metrics[key] = FinishedMean(self.finishers.get(name, _same)).to(total.device)
            metric: Any = self.metrics[key]
            metric.update(total.detach() / output.weight.clamp_min(1.0), output.weight)
        return {name: self.metrics[name.replace(".", "_")] for name in totals}  # type: ignore[misc]


class FinishedMean(MeanMetric):
    """A weighted mean with a function applied at the end, e.g. ``exp`` for perplexity.

    Args:
        finish: The function.
    """

    def __init__(self, finish: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.finish = finish

    @override
    def compute(self) -> Tensor:
        """Finished mean (torchmetrics calls this)."""
        return self.finish(super().compute())


def _same(mean: Tensor) -> Tensor:
    return mean
