"""Sums and weightings of losses, worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lion_lightning.losses import (
    BCOPairLoss,
    ChosenNLLLoss,
    HingeLoss,
    IPOLoss,
    SigmoidLoss,
    SimPOLoss,
    WeightedSum,
    WPOLoss,
)
from lion_lightning.types import PairLogps
from tests.unit.losses.chosen_logps import HALF_NAT, LN2, LN3, LN4, answers, random_pairs, with_ratios


def test_weighted_sum_adds_up_its_parts_each_with_its_own_beta_and_reduction() -> None:
    policy = PairLogps(answers([-3.0], counts=[3]), answers([-8.0], counts=[2]))
    reference = PairLogps(answers([-9.0], counts=[3]), answers([-4.0], counts=[2]))
    parts = [SigmoidLoss(LN3 / 10), IPOLoss(0.1), ChosenNLLLoss()]
    # margin 6 + 4 = 10: ln(4/3); means 2 + 2 = 4 against 5: 1; mean NLL 3/3 = 1
    assert WeightedSum(parts, [0.5, 2.0, 3.0])(policy, reference).item() == pytest.approx(HALF_NAT / 2 + 2 + 3)
    assert WeightedSum(parts)(policy, reference).item() == pytest.approx(HALF_NAT + 1 + 1)


def test_mpo_is_the_paper_s_sum() -> None:
    policy, reference = with_ratios([LN3], [-LN3])
    # one token an answer; the reference's first chosen log-prob is -7, so the policy's is ln 3 - 7
    mpo = WeightedSum([SigmoidLoss(1.0), BCOPairLoss(1.0), ChosenNLLLoss()], [0.8, 0.2, 1.0])
    expected = 0.8 * math.log(10 / 9) + 0.2 * 2 * HALF_NAT + (7 - LN3)
    assert mpo(policy, reference).item() == pytest.approx(expected, rel=1e-6)


def test_a_sum_logs_the_rewards_of_its_first_part() -> None:
    policy, reference = random_pairs()
    first, second = IPOLoss(0.3), SigmoidLoss(2.0)
    assert torch.equal(
        WeightedSum([first, second]).rewards(policy, reference).margin, first.rewards(policy, reference).margin
    )
    assert torch.equal(
        WeightedSum([first, second]).log_ratios(policy, reference).margin, first.log_ratios(policy, reference).margin
    )


def test_a_sum_needs_a_reference_if_any_part_does() -> None:
    assert WeightedSum([ChosenNLLLoss(), SigmoidLoss()]).needs_reference
    assert not WeightedSum([SimPOLoss(), ChosenNLLLoss()]).needs_reference
    assert WPOLoss().needs_reference
    assert not WPOLoss(SimPOLoss()).needs_reference


def test_steps_and_modes_reach_the_parts_of_parts() -> None:
    policy, reference = with_ratios([2 * LN3], [0.0])
    bco = BCOPairLoss(1.0)
    whole = WeightedSum([WPOLoss(bco), ChosenNLLLoss()])
    whole.eval()(policy, reference)
    whole.after_step(lambda total: total)
    assert bco.both.totals.tolist() == [0.0, 0.0]
    whole.train()(policy, reference)
    whole.after_step(lambda total: total)
    assert bco.shift.item() == pytest.approx(LN3)
    assert [key for key, _ in whole.named_buffers()] == ["parts.0.parts.0.both.totals"]


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ([1.0], "WeightedSum: 2 losses but 1 weights; give one for each"),
        ([1.0, -1.0], "WeightedSum: weights[1] is -1.0; give a number of at least 0"),
        ([float("nan"), 1.0], "WeightedSum: weights[0] is nan; give a number of at least 0"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights: list[float], complaint: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        WeightedSum([SigmoidLoss(), HingeLoss()], weights)
    assert str(error.value) == complaint


def test_a_sum_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^WeightedSum: losses is empty; name at least one$"):
        WeightedSum([])


def test_wpo_weighs_a_pair_by_how_like_the_policy_both_answers_are() -> None:
    # a token less likely than usual by ln 4 / 2 in chosen (2 tokens), by ln 2 in rejected (3 tokens)
    chosen = answers([-6.0], counts=[2], log_collision_prob=[-6.0 + LN4])
    rejected = answers([-6.0], counts=[3], log_collision_prob=[-6.0 + 3 * LN2])
    reference = PairLogps(answers([-6.0], counts=[2]), answers([-6.0], counts=[3]))
    logps = chosen.tokens.values.requires_grad_()
    loss = WPOLoss(SigmoidLoss(0.1))(PairLogps(chosen, rejected), reference)
    # weights 1/2 and 1/2; at margin 0 the loss is ln 2 and its slope -beta / 2, with none through the weight
    assert loss.item() == pytest.approx(LN2 / 4)
    assert torch.autograd.grad(loss.sum(), logps)[0].tolist() == pytest.approx([-0.1 / 2 / 4] * 2)


def test_wpo_of_what_the_policy_would_say_itself_is_the_loss_itself() -> None:
    policy, reference = random_pairs()
    own = []
    for side in policy:
        own.append(replace(side, tokens=side.tokens._replace(log_collision_prob=side.tokens.values)))
    torch.testing.assert_close(WPOLoss(HingeLoss(0.3))(PairLogps(*own), reference), HingeLoss(0.3)(policy, reference))


def test_wpo_logs_the_rewards_of_what_it_weighs() -> None:
    policy, reference = random_pairs()
    assert torch.equal(
        WPOLoss(IPOLoss()).rewards(policy, reference).chosen, IPOLoss().rewards(policy, reference).chosen
    )
