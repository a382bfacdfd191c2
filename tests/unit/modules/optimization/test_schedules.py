"""Learning-rate schedules against values by hand and against transformers' own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from lion_lightning.modules import ConstantWithWarmup, CosineWithWarmup, LinearWithWarmup


def optimizer(rates: tuple[float, ...] = (1.0,)) -> SGD:
    return SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def rates(make: Callable[[SGD], Any], steps: int) -> list[float]:
    """Learning rate that each of the first steps uses."""
    used = optimizer()
    schedule = make(used)
    seen = []
    for _ in range(steps):
        seen.append(used.param_groups[0]["lr"])
        used.step()
        schedule.step()
    return seen


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # two steps of warmup, then four: cos(0), cos(pi/4), cos(pi/2), cos(3 pi/4), each (1 + cos) / 2
        (CosineWithWarmup, [1 / 3, 2 / 3, 1, 0.8535534, 0.5, 0.1464466, 0]),
        (LinearWithWarmup, [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25, 0]),
        (ConstantWithWarmup, [1 / 3, 2 / 3, 1, 1, 1, 1, 1]),
    ],
)
def test_rates_by_hand(kind: Any, expected: list[float]) -> None:
    assert rates(lambda o: kind(o, warmup=2, total_steps=6), 7) == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0, 3, 10])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(CosineWithWarmup, get_cosine_schedule_with_warmup), (LinearWithWarmup, get_linear_schedule_with_warmup)],
)
def test_rates_equal_those_of_transformers_without_its_step_at_zero(ours: Any, theirs: Any, warmup: int) -> None:
    expected = rates(lambda o: theirs(o, warmup + 1, 38), 38)
    assert expected[0] == 0
    assert rates(lambda o: ours(o, warmup=warmup, total_steps=37), 37) == pytest.approx(expected[1:], abs=1e-12)


def test_constant_rates_equal_those_of_transformers_without_its_step_at_zero() -> None:
    expected = rates(lambda o: get_constant_schedule_with_warmup(o, 6), 13)
    assert rates(lambda o: ConstantWithWarmup(o, warmup=5, total_steps=12), 12) == pytest.approx(expected[1:])


def test_a_share_is_rounded_up_to_whole_steps_and_one_or_more_is_a_number_of_steps() -> None:
    assert rates(lambda o: LinearWithWarmup(o, warmup=0.1, total_steps=15), 3) == pytest.approx([1 / 3, 2 / 3, 1])
    assert rates(lambda o: LinearWithWarmup(o, warmup=1, total_steps=15), 2) == pytest.approx([1 / 2, 1])


@pytest.mark.parametrize("kind", [CosineWithWarmup, LinearWithWarmup, ConstantWithWarmup])
@pytest.mark.parametrize("warmup", [0, 0.01, 0.1, 0.5, 1, 2, 100])
@pytest.mark.parametrize("total", [1, 2, 3, 10])
def test_no_step_of_a_run_has_a_rate_of_zero(kind: Any, warmup: float, total: int) -> None:
    seen = rates(lambda o: kind(o, warmup=warmup, total_steps=total), total)
    assert min(seen) > 0
    assert max(seen) <= 1


def test_a_schedule_that_learns_its_length_late_has_the_rate_of_that_length_at_once() -> None:
    used = optimizer((1.0, 0.1))
    schedule = LinearWithWarmup(used, warmup=0.5)
    schedule.begin(6)  # three steps of warmup, where the unknown length had one
    assert [group["lr"] for group in used.param_groups] == pytest.approx([0.25, 0.025])
    assert schedule.get_last_lr() == pytest.approx([0.25, 0.025])


def test_a_schedule_whose_length_nobody_told_does_not_go_on() -> None:
    used = optimizer()
    schedule = CosineWithWarmup(used, warmup=0)
    used.step()
    with pytest.raises(ValueError, match=r"CosineWithWarmup was not told how long the run is; set total_steps"):
        schedule.step()


def test_cosine_ends_at_its_minimum() -> None:
    seen = rates(lambda o: CosineWithWarmup(o, warmup=0, minimum=0.1, total_steps=4), 5)
    assert seen == pytest.approx([1, 0.1 + 0.9 * 0.8535534, 0.55, 0.1 + 0.9 * 0.1464466, 0.1])


def test_a_rate_never_rises_again_after_the_end_of_the_run() -> None:
    assert rates(lambda o: CosineWithWarmup(o, warmup=0, total_steps=3), 9)[3:] == [0.0] * 6


def test_no_warmup_starts_at_the_peak_even_before_the_length_is_known() -> None:
    used = optimizer()
    CosineWithWarmup(used, warmup=0)
    assert used.param_groups[0]["lr"] == 1.0


def test_every_parameter_group_keeps_its_own_peak() -> None:
    used = optimizer((1.0, 0.01))
    schedule = LinearWithWarmup(used, warmup=2, total_steps=4)
    used.step()
    schedule.step()
    assert [group["lr"] for group in used.param_groups] == pytest.approx([2 / 3, 0.01 * 2 / 3])


def test_a_resumed_schedule_goes_on_from_its_step_with_the_new_runs_length() -> None:
    used = optimizer()
    schedule = LinearWithWarmup(used, warmup=0, total_steps=4)
    for _ in range(2):
        used.step()
        schedule.step()
    resumed_for = optimizer()
    resumed = LinearWithWarmup(resumed_for, warmup=0, total_steps=8)
    resumed.load_state_dict(schedule.state_dict())
    resumed_for.step()
    resumed.step()
    assert resumed_for.param_groups[0]["lr"] == pytest.approx(1 - 3 / 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup": -0.1}, r"lr_scheduler\.warmup is -0\.1; give"),
        ({"warmup": math.nan}, r"lr_scheduler\.warmup is nan; give"),
        ({"warmup": math.inf}, r"lr_scheduler\.warmup is inf; give"),
        ({"total_steps": 0}, r"lr_scheduler\.total_steps is 0; give"),
        ({"minimum": -0.1}, r"lr_scheduler\.minimum is -0\.1; give"),
        ({"minimum": math.nan}, r"lr_scheduler\.minimum is nan; give"),
        ({"minimum": 2.0}, r"lr_scheduler\.minimum is 2\.0; give"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CosineWithWarmup(optimizer(), **arguments)
