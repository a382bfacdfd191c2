"""Metrics: means over the items of a global step (training) or of a data set (evaluation)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torchmetrics import Metric
from typing_extensions import override

from lion_lightning.distributed.replicas import sum_over_replicas
from lion_lightning.types import LossOutput, SumOver

MetricTransforms = Mapping[str, Callable[[Tensor], Tensor]]
"""Function applied to a metric's mean before it is logged, by metric, e.g. ``exp`` for perplexity."""

MetricDifferences = Mapping[str, tuple[str, str]]
"""Metrics that are one mean minus another, by metric: of answers of two kinds, say, that are not equally many."""


class StepMetrics:
    """Training metrics: sums over the micro-batches of an optimizer step, until :meth:`reduce` ends it."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}  # of the metrics that are no means over the items
        self._reduced = True

    def add(self, output: LossOutput) -> None:
        """Add a micro-batch; the first one after :meth:`reduce` starts a new step."""
        if self._reduced:
            self._totals, self._counts, self._reduced = {}, {}, False
        _add_to(self._totals, {"num_items": output.num_items, "loss": output.total})
        for name, metric in output.metrics.items():
            if isinstance(metric, SumOver):
                _add_to(self._totals, {name: metric.total})
                _add_to(self._counts, {name: metric.number})
            else:
                _add_to(self._totals, {name: metric})

    def reduce(self, strategy: Strategy) -> None:
        """Sum over replicas, in one collective; every rank has the same keys, since it ran the same module."""
        if self._reduced:
            return
        totals, counts = sorted(self._totals), sorted(self._counts)
        parts = [self._totals[name] for name in totals] + [self._counts[name] for name in counts]
        vector = sum_over_replicas(torch.stack(parts), strategy)
        self._totals = dict(zip(totals, vector[: len(totals)].unbind(), strict=True))
        self._counts = dict(zip(counts, vector[len(totals) :].unbind(), strict=True))
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

    def means(self, transforms: MetricTransforms, differences: MetricDifferences) -> dict[str, Tensor]:
        """Loss and metrics, as means over the step's items or over what they count.

        Args:
            transforms: Function applied to a mean, by metric.
            differences: Metrics that are one mean minus another.
        """
        items = _divisor(self.num_items)
        means = {}
        for name, total in self._totals.items():
            if name != "num_items":
                mean = total / self._counts.get(name, items)  # NaN where there is nothing of a kind
                means[name] = transforms.get(name, _identity)(mean).float()
        for name, (one, other) in differences.items():
            means[name] = means[one] - means[other]
        return means


class StageMetrics(nn.Module):
    """Evaluation metrics of a stage, one torchmetrics mean each, created when the first batch names them.

    Args:
        transforms: Function applied to a metric's mean, by metric.
        differences: Metrics that are one mean minus another.
    """

    def __init__(self, transforms: MetricTransforms, differences: MetricDifferences) -> None:
        super().__init__()
        self.transforms, self.differences = dict(transforms), dict(differences)
        self.metrics = nn.ModuleDict()

    def reset(self) -> None:
        """Forget all batches."""
        for metric in self.metrics.values():
            cast(Metric, metric).reset()

    def update(self, output: LossOutput) -> dict[str, Metric]:
        """Add a batch, and return the metrics to log by name."""
        named: dict[str, Tensor | SumOver] = {"loss": output.total, **output.metrics}
        for name, each in named.items():
            total, number = each if isinstance(each, SumOver) else (each, output.num_items)
            if _key(name) not in self.metrics:
                self.metrics[_key(name)] = TransformedMean(self.transforms.get(name, _identity)).to(total.device)
            self._metric(name).update(total.detach(), number)
        for name, (one, other) in self.differences.items():
            if _key(name) not in self.metrics:
                self.metrics[_key(name)] = self._metric(one) - self._metric(other)
        return {name: self._metric(name) for name in [*named, *self.differences]}

    def _metric(self, name: str) -> Metric:
        return cast(Metric, self.metrics[_key(name)])


class TransformedMean(Metric):
    """A mean with a function applied at the end, e.g. ``exp`` for perplexity; NaN of nothing.

    Sums are fp64 whatever is made otherwise: a run in bf16-true makes bf16, which cannot count past 256, and fp32 does
    not count the tokens of a large set.

    Args:
        transform: The function.
    """

    total: Tensor
    number: Tensor

    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.transform = transform
        for name in ("total", "number"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(self, total: Tensor, number: Tensor) -> None:
        """Add what was seen.

        Args:
            total: Scalar sum.
            number: Scalar number of what was added up, or the sum of its weights.
        """
        self.total = self.total.double() + total
        self.number = self.number.double() + number

    @override
    def compute(self) -> Tensor:
        return self.transform(self.total / self.number).float()


def _add_to(sums: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        value = value.detach().double()
        sums[name] = sums[name] + value if name in sums else value


def _key(name: str) -> str:
    return f"mean/{name.replace('.', '_')}"  # so that it may also be "values", which a ModuleDict has too


def _divisor(num_items: Tensor) -> Tensor:
    """The items, which may be less than one where targets have weights; one where there are none."""
    return num_items.where(num_items > 0, 1)


def _identity(mean: Tensor) -> Tensor:
    return mean
