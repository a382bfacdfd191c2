"""Metrics are means over the items, or over what they count themselves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lion_lightning.modules.optimization.metrics import StageMetrics, StepMetrics
from lion_lightning.types import LossOutput, SumOver

DIFFERENCES = {"margin": ("good", "bad")}


class Ranks:
    """Another rank of which each sum is known to be twice this one's."""

    def reduce(self, vector: torch.Tensor, group: Any, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "sum"
        return 3 * vector


def output(total: float, items: float, plain: float, good: tuple[float, int], bad: tuple[float, int]) -> LossOutput:
    kinds = {"good": good, "bad": bad, "values": bad}  # a name that ModuleDict has of its own
    sums = {name: SumOver(torch.tensor(total), torch.tensor(number)) for name, (total, number) in kinds.items()}
    return LossOutput(torch.tensor(total), torch.tensor(items), {"plain.of": torch.tensor(plain), **sums})


FIRST, SECOND = output(6.0, 3.0, 3.0, (4.0, 2), (1.0, 1)), output(4.0, 2.0, 7.0, (0.0, 0), (5.0, 2))


def test_a_step_divides_each_sum_by_its_own_number() -> None:
    step = StepMetrics()
    step.add(FIRST)
    step.add(SECOND)
    ranks: Any = Ranks()
    step.reduce(ranks)
    means = {name: mean.item() for name, mean in step.means({"plain.of": torch.exp}, DIFFERENCES).items()}
    assert means == pytest.approx(
        {"loss": 2.0, "plain.of": math.exp(2.0), "good": 2.0, "bad": 2.0, "margin": 0.0, "values": 2.0}
    )
    assert step.num_items.item() == 15.0


def test_a_kind_without_any_is_not_a_number_in_a_step_and_a_data_set() -> None:
    step, stage = StepMetrics(), StageMetrics({}, DIFFERENCES)
    step.add(SECOND)
    ranks: Any = Ranks()
    step.reduce(ranks)
    of_step = step.means({}, DIFFERENCES)
    of_stage = {name: metric.compute() for name, metric in stage.update(SECOND).items()}
    for means in (of_step, of_stage):
        assert math.isnan(means["good"])
        assert math.isnan(means["margin"])
        assert means["bad"].item() == 2.5


def test_a_data_set_divides_by_what_all_batches_have() -> None:
    stage = StageMetrics({"plain.of": torch.exp}, DIFFERENCES)
    stage.update(output(100.0, 1.0, 100.0, (100.0, 9), (100.0, 9)))
    stage.reset()
    stage.update(FIRST)
    metrics = stage.update(SECOND)
    means = {name: metric.compute().item() for name, metric in metrics.items()}
    assert means == pytest.approx(
        {"loss": 2.0, "plain.of": math.exp(2.0), "good": 2.0, "bad": 2.0, "margin": 0.0, "values": 2.0}
    )


def test_many_batches_of_a_bf16_run_are_counted_exactly() -> None:
    stage, before = StageMetrics({}, {}), torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)  # as Lightning's bf16-true does around each step
        for _ in range(2):
            stage.to(torch.bfloat16)  # when a second fit begins
            stage.reset()
            for number in range(600):
                value = torch.tensor(0.3 * (number % 2), dtype=torch.float32)
                metrics = stage.update(LossOutput(value, torch.tensor(1.0, dtype=torch.float32)))
    finally:
        torch.set_default_dtype(before)
    assert metrics["loss"].compute().item() == pytest.approx(0.15, rel=1e-6)  # in bf16 256 + 1 is 256
