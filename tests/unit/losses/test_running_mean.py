"""A running mean counts what it is told, once a step."""

from __future__ import annotations

import torch

from lion_lightning.losses.running_mean import RunningMean


def test_values_count_where_they_are_said_to_and_from_the_next_step_on() -> None:
    mean = RunningMean()
    assert mean.mean.item() == 0.0
    mean.add(torch.tensor([[1.0, 5.0], [3.0, 7.0]]), torch.tensor([[True, False], [True, False]]))
    mean.add(torch.tensor([14.0]))
    assert mean.mean.item() == 0.0, "it moved within a step"
    mean.end_step(lambda total: total)
    assert mean.totals.tolist() == [18.0, 3.0]
    assert mean.mean.item() == 6.0


def test_nothing_that_counts_leaves_it() -> None:
    mean = RunningMean()
    mean.add(torch.tensor([2.0]), torch.tensor([False]))
    mean.add(torch.zeros(0))
    mean.end_step(lambda total: total)
    assert mean.totals.tolist() == [0.0, 0.0]


def test_ranks_add_up() -> None:
    mean = RunningMean()
    mean.add(torch.tensor([2.0]))
    mean.end_step(lambda total: total + torch.tensor([10.0, 2.0]))  # of another rank
    assert mean.mean.item() == 4.0


def test_it_stays_exact_in_a_model_cast_to_bf16() -> None:
    mean = RunningMean()
    mean.totals = torch.tensor([100.0, 1001.0])
    mean.to(torch.bfloat16)
    mean.add(torch.ones(2, dtype=torch.bfloat16))
    mean.end_step(lambda total: total)
    assert mean.totals.tolist() == [102.0, 1003.0]  # 1001 in bf16 is 1000, and 1000 + 2 is 1000
