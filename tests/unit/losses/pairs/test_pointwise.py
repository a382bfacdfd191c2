"""Losses of each answer's own reward, worked out by hand: sigmoid(ln 3) is 3/4, sigmoid(2 ln 3) is 9/10."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lion_lightning.losses import APODownLoss, APOZeroLoss, BCOPairLoss, KTOPairLoss, NCALoss, SPPOHardLoss
from lion_lightning.types import PairLogps
from tests.unit.losses.chosen_logps import HALF_NAT, LN2, LN3, LN4, answers, empty_pairs, random_pairs, with_ratios


def alone(total: Tensor) -> Tensor:
    """One rank."""
    return total


def part(pairs: PairLogps, rows: slice) -> PairLogps:
    return PairLogps(*(answers(side.sums[rows], side.counts[rows].tolist()) for side in pairs))


def test_nca_pulls_the_chosen_answer_both_ways() -> None:
    policy, reference = with_ratios([LN3], [-LN3])
    logps = policy.chosen.tokens.values.requires_grad_()
    loss = NCALoss(1.0)(policy, reference)
    assert loss.item() == pytest.approx(HALF_NAT + LN4 / 2 + HALF_NAT / 2)
    # -sigmoid(-r) + sigmoid(r) / 2 = -1/4 + 3/8
    assert torch.autograd.grad(loss.sum(), logps)[0].item() == pytest.approx(1 / 8)


def test_sppo_aims_at_log_ratios_of_plus_and_minus_one_over_two_beta() -> None:
    policy, reference = with_ratios([3.0], [-2.0])
    logps = policy.chosen.tokens.values.requires_grad_()
    loss = SPPOHardLoss(beta=0.5)(policy, reference)  # (3 - 1)^2 + (-2 + 1)^2
    assert loss.item() == pytest.approx(5.0)
    assert torch.autograd.grad(loss.sum(), logps)[0].item() == pytest.approx(4.0)


def test_apo_zero_and_apo_down_at_known_rewards() -> None:
    policy, reference = with_ratios([LN3], [-LN3])
    assert APOZeroLoss(1.0)(policy, reference).item() == pytest.approx(1 / 4 + 1 / 4)
    assert APODownLoss(1.0)(policy, reference).item() == pytest.approx(3 / 4 + 1 / 10)


def test_apo_zero_raises_and_apo_down_lowers_the_chosen_answer() -> None:
    policy, reference = with_ratios([LN3], [LN3])
    logps = policy.chosen.tokens.values.requires_grad_()
    totals = [loss(1.0)(policy, reference).sum() for loss in (APOZeroLoss, APODownLoss)]
    zero, down = (torch.autograd.grad(total, logps, retain_graph=True)[0].item() for total in totals)
    # -sigmoid'(ln 3) = -3/16; sigmoid'(ln 3) - sigmoid'(0) = 3/16 - 1/4
    assert (zero, down) == pytest.approx((-3 / 16, 3 / 16 - 1 / 4))


def test_kto_anchors_each_side_at_the_other_sides_kl() -> None:
    policy, reference = with_ratios([2 * LN3, 0.0], [-LN3, -LN3])
    # chosen mean ln 3 anchors the rejected; the rejected mean -ln 3 is cut to 0 and anchors the chosen:
    # (1 - sigmoid(2 ln 3) + 1 - sigmoid(ln 3 + ln 3)) / 2 and (1 - sigmoid(0) + 1 - sigmoid(2 ln 3)) / 2
    assert KTOPairLoss(1.0)(policy, reference).tolist() == pytest.approx([(0.1 + 0.1) / 2, (0.5 + 0.1) / 2])


def test_kto_scales_its_anchor_by_beta_and_passes_no_gradient_through_it() -> None:
    policy, reference = with_ratios([6.0], [6.0])
    logps = policy.chosen.tokens.values.requires_grad_()
    loss = KTOPairLoss(0.5)(policy, reference)
    # both rewards 3 and both anchors 3: 1 - sigmoid(0), and the slope is -beta * sigmoid'(0) / 2
    assert loss.item() == pytest.approx(0.5)
    assert torch.autograd.grad(loss.sum(), logps)[0].item() == pytest.approx(-0.5 / 4 / 2)


def test_bco_judges_rewards_against_the_mean_of_the_steps_before() -> None:
    loss = BCOPairLoss(1.0)
    policy, reference = with_ratios([2 * LN3], [0.0])
    # no steps yet: -log sigmoid(2 ln 3) - log sigmoid(0)
    first = torch.tensor(10 / 9).log().item() + LN2
    assert loss(policy, reference).item() == pytest.approx(first, rel=1e-6)
    assert loss(policy, reference).item() == pytest.approx(first, rel=1e-6), "the mean moved within a step"
    loss.after_step(alone)
    assert loss.shift.item() == pytest.approx(LN3)  # the mean of 2 ln 3 and 0, seen twice
    # -log sigmoid(2 ln 3 - ln 3) - log sigmoid(ln 3 - 0)
    assert loss(policy, reference).item() == pytest.approx(2 * HALF_NAT, rel=1e-6)


def test_bco_passes_no_gradient_through_its_mean() -> None:
    loss = BCOPairLoss(0.5)
    policy, reference = with_ratios([0.0], [0.0])
    logps = policy.chosen.tokens.values.requires_grad_()
    gradient = torch.autograd.grad(loss(policy, reference).sum(), logps)[0]
    loss.after_step(alone)
    assert gradient.item() == pytest.approx(-0.25)  # -beta * sigmoid(0)
    assert not loss.both.totals.requires_grad


def test_bco_mean_does_not_depend_on_how_a_step_is_split() -> None:
    policy, reference = random_pairs(6)
    whole, split = BCOPairLoss(0.3), BCOPairLoss(0.3)
    whole(policy, reference)
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        split(part(policy, rows), part(reference, rows))
    split(*empty_pairs())
    whole.after_step(alone)
    split.after_step(alone)
    assert whole.both.totals[1] == split.both.totals[1] == 12
    assert split.shift.item() == pytest.approx(whole.shift.item(), rel=1e-6)


def test_bco_mean_is_over_all_ranks() -> None:
    policy, reference = random_pairs(6)
    ranks = [BCOPairLoss(0.3), BCOPairLoss(0.3), BCOPairLoss(0.3)]
    for loss, rows in zip(ranks, (slice(0, 1), slice(1, 6), slice(6, 6)), strict=True):
        loss(part(policy, rows), part(reference, rows))
    pending = torch.stack([loss.both._pending for loss in ranks]).sum(0)
    for loss in ranks:
        loss.after_step(lambda _: pending)
    rewards = torch.cat([*ranks[0].rewards(policy, reference)])
    assert [loss.shift.item() for loss in ranks] == pytest.approx([rewards.mean().item()] * 3, rel=1e-6)


def test_bco_learns_nothing_from_validation() -> None:
    policy, reference = random_pairs()
    loss = BCOPairLoss(0.3).eval()
    loss(policy, reference)
    loss.after_step(alone)
    assert loss.both.totals.tolist() == [0.0, 0.0]


def test_bco_mean_survives_a_checkpoint_and_goes_on_from_there() -> None:
    policy, reference = random_pairs()
    one = BCOPairLoss(0.3)
    one(policy, reference)
    one.after_step(alone)
    other = BCOPairLoss(0.3)
    other.load_state_dict(one.state_dict())
    for loss in (one, other):
        loss(part(policy, slice(0, 2)), part(reference, slice(0, 2)))
        loss.after_step(alone)
    assert one.both.totals[1] == 14
    assert torch.equal(one.both.totals, other.both.totals)
    assert torch.equal(one(policy, reference), other(policy, reference))


def test_bco_keeps_counting_in_a_model_cast_to_bf16() -> None:
    loss = BCOPairLoss(0.3)
    loss.both.totals = torch.tensor([100.0, 1001.0])
    loss.to(torch.bfloat16)
    loss(*with_ratios([0.0], [0.0]))
    loss.after_step(alone)
    assert loss.both.totals.tolist() == [100.0, 1003.0]  # 1001 in bf16 is 1000, and 1000 + 2 is 1000
