"""Losses around a reference point, worked out by hand: sigmoid(ln 3) is 3/4, sigmoid(2 ln 3) is 9/10."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lion_lightning.losses import APOZeroUnpairedLoss, BCOLoss, KTOLoss
from lion_lightning.types import AnswerLogps
from tests.unit.losses.chosen_logps import (
    HALF_NAT,
    LN2,
    LN3,
    LN4,
    answers_with_ratios,
    random_answers,
)

BOTH = torch.tensor([True, False])


def alone(total: Tensor) -> Tensor:
    """One rank."""
    return total


def part(answers: AnswerLogps, rows: slice) -> AnswerLogps:
    return answers.take(torch.arange(len(answers.counts))[rows])


def test_kto_values_answers_from_the_mean_of_mismatched_ones_on() -> None:
    loss = KTOLoss(beta=0.5)
    loss.observe_mismatched(*answers_with_ratios([4 * LN3, 0.0]))  # z_0 = 2 ln 3, so beta z_0 = ln 3
    policy, reference = answers_with_ratios([4 * LN3, 4 * LN3])
    # 1 - sigmoid(2 ln 3 - ln 3) and 1 - sigmoid(ln 3 - 2 ln 3)
    assert loss(policy, reference, BOTH).tolist() == pytest.approx([1 / 4, 3 / 4])


def test_a_reference_point_below_zero_is_zero() -> None:
    loss = KTOLoss(1.0)
    loss.observe_mismatched(*answers_with_ratios([-5.0, 1.0]))
    policy, reference = answers_with_ratios([LN3, LN3])
    assert loss(policy, reference, BOTH).tolist() == pytest.approx([1 / 4, 3 / 4])


def test_a_micro_batch_without_mismatched_answers_has_the_reference_point_zero() -> None:
    loss = KTOLoss(1.0)
    loss.observe_mismatched(*answers_with_ratios([8.0]))
    loss.observe_mismatched(*answers_with_ratios([]))
    policy, reference = answers_with_ratios([LN3, LN3])
    assert loss(policy, reference, BOTH).tolist() == pytest.approx([1 / 4, 3 / 4])


def test_weights_count_the_kinds_and_the_slope_is_that_of_the_sigmoid() -> None:
    policy, reference = answers_with_ratios([0.0, 0.0])
    logps = policy.tokens.values.requires_grad_()
    loss = KTOLoss(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)(policy, reference, BOTH)
    assert loss.tolist() == [1.0, 1.5]
    # -lambda beta sigmoid'(0) = -2 * 1/2 * 1/4, and 3 * 1/2 * 1/4
    assert torch.autograd.grad(loss.sum(), logps)[0].tolist() == [-0.25, 0.375]


def test_no_gradient_flows_through_the_reference_point() -> None:
    loss = KTOLoss(1.0)
    mismatched, base = answers_with_ratios([1.0])
    logps = mismatched.tokens.values.requires_grad_()
    loss.observe_mismatched(mismatched, base)
    assert not loss(*answers_with_ratios([0.0, 0.0]), BOTH).requires_grad
    assert logps.grad is None


def test_apo_zero_is_kto_without_a_reference_point() -> None:
    loss = APOZeroUnpairedLoss(1.0, desirable_weight=2.0)
    assert not loss.needs_mismatched
    assert loss(*answers_with_ratios([LN3, LN3]), BOTH).tolist() == pytest.approx([2 / 4, 3 / 4])


def test_bco_judges_rewards_against_half_the_sum_of_both_means() -> None:
    loss = BCOLoss(1.0)
    labels = torch.tensor([True, True, True, False])
    policy, reference = answers_with_ratios([2 * LN3, 2 * LN3, 2 * LN3, 0.0])
    # no steps yet: -log sigmoid(2 ln 3) each, and -log sigmoid(0)
    first = torch.tensor(10 / 9).log().item()
    assert loss(policy, reference, labels).tolist() == pytest.approx([first, first, first, LN2], rel=1e-6)
    loss.after_step(alone)
    assert loss.shift.item() == pytest.approx(LN3)  # (2 ln 3 + 0) / 2, however many of each
    # -log sigmoid(2 ln 3 - ln 3) each, and -log sigmoid(ln 3 - 0)
    assert loss(policy, reference, labels).tolist() == pytest.approx([HALF_NAT] * 4, rel=1e-6)


def test_a_kind_that_was_not_seen_has_the_mean_zero() -> None:
    loss = BCOLoss(1.0)
    loss(*answers_with_ratios([2 * LN3, 2 * LN3]), torch.tensor([True, True]))
    loss.after_step(alone)
    assert loss.shift.item() == pytest.approx(LN3)
    # -log sigmoid(0 - ln 3) for a desirable answer of reward 0: ln 4
    assert loss(*answers_with_ratios([0.0]), torch.tensor([True])).item() == pytest.approx(LN4, rel=1e-6)


def test_bco_does_not_depend_on_how_a_step_is_split_and_resumes() -> None:
    policy, reference = random_answers(6)
    labels = torch.tensor([True, False, True, True, False, True])
    whole, split = BCOLoss(0.3), BCOLoss(0.3)
    whole(policy, reference, labels)
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6), slice(6, 6)):
        split(part(policy, rows), part(reference, rows), labels[rows])
    whole.after_step(alone)
    split.after_step(alone)
    assert split.shift.item() == pytest.approx(whole.shift.item(), rel=1e-6)
    resumed = BCOLoss(0.3)
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(resumed(policy, reference, labels), whole(policy, reference, labels))
    assert [name for name, _ in whole.named_buffers()] == ["desirable.totals", "undesirable.totals"]


def test_bco_learns_nothing_from_validation() -> None:
    loss = BCOLoss(0.3).eval()
    loss(*random_answers(2), BOTH)
    loss.after_step(alone)
    assert loss.shift.item() == 0.0


@pytest.mark.parametrize("name", ["desirable_weight", "undesirable_weight"])
@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_a_weight_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^KTOLoss: {name} is {value}; give a number of at least 0$"):
        KTOLoss(**{name: value})
