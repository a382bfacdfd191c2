"""Metrics: means over the items of a global step (training) or of a data set (evaluation)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from typing_extensions import override

from lion_lightning.types import LossOutput

MetricTransforms = Mapping[str, Callable[[Tensor], Tensor]]
"""Function applied to a metric's mean before it is logged, by metric, e.g. ``exp`` for perplexity."""


class StepMetrics:
    """Training metrics: sums over the micro-batches of an optimizer step, until :meth:`reduce` ends it."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._reduced = True

    def add(self, output: LossOutput) -> None:
        """Add a micro-batch; the first one after :meth:`reduce` starts a new step."""
        if self._reduced:
            self._totals, self._reduced = {}, False
        values = {"num_items": output.num_items, "loss": output.total, **output.metrics}
        for name, value in values.items():
            value = value.detach().double()
            self._totals[name] = self._totals[name] + value if name in self._totals else value

    def reduce(self, strategy: Strategy) -> None:
        """Sum over ranks, in one collective; every rank has the same keys, since it ran the same module."""
        if self._reduced:
            return
        names = sorted(self._totals)
        vector = strategy.reduce(torch.stack([self._totals[name] for name in names]), reduce_op="sum")
        assert isinstance(vector, Tensor)
        self._totals = dict(zip(names, vector.unbind(), strict=True))
        self._reduced = True

    @property
    def num_items(self) -> Tensor:
        """Items of the step."""
        return self._totals["num_items"]

    def as_floats(self, number: Tensor) -> tuple[float, float]:
        """A scalar and the step's total loss as floats, with one wait for the device."""
        loss = self._totals["loss"]
        first, second = torch.stack([number.to(loss), loss]).tolist()
        return first, second

    def means(self, metric_transforms: MetricTransforms) -> dict[str, Tensor]:
        """Loss and metrics, as means over the step's items."""
        count = _divisor(self.num_items)
        means = {}
        for name, total in self._totals.items():
            if name != "num_items":
                means[name] = metric_transforms.get(name, _identity)(total / count).float()
        return means


class StageMetrics(nn.Module):
    """Evaluation metrics of a stage, one torchmetrics mean each, created when the first batch names them.

    Args:
        metric_transforms: Function applied to a metric's mean, by metric.
    """

    def __init__(self, metric_transforms: MetricTransforms) -> None:
        super().__init__()
        self.metric_transforms = dict(metric_transforms)
        self.metrics = nn.ModuleDict()

    def reset(self) -> None:
        """Forget all batches."""
        for metric in self.metrics.values():
            cast(Metric, metric).reset()

    def update(self, output: LossOutput) -> dict[str, Metric]:
        """Add a batch, and return the metrics to log by name."""
        totals = {"loss": output.total, **output.metrics}
        for name, total in totals.items():
            key = name.replace(".", "_")
            if key not in self.metrics:
                self.metrics[key] = TransformedMean(self.metric_transforms.get(name, _identity)).to(total.device)
            metric: Any = self.metrics[key]
            metric.update(total.detach() / _divisor(output.num_items), output.num_items)
        return {name: self.metrics[name.replace(".", "_")] for name in totals}  # type: ignore[misc]


class TransformedMean(MeanMetric):
    """A weighted mean with a function applied at the end, e.g. ``exp`` for perplexity.

    Args:
        transform: The function.
    """

    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.transform = transform

    @override
    def compute(self) -> Tensor:
        return self.transform(super().compute())


def _divisor(num_items: Tensor) -> Tensor:
    """The items, which may be less than one where targets have weights; one where there are none."""
    return num_items.where(num_items > 0, 1)


def _identity(mean: Tensor) -> Tensor:
    return mean
