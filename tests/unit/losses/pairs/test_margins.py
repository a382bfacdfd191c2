"""Losses of the rewards' margin, worked out by hand: sigmoid(ln 3) is 3/4."""

from __future__ import annotations

import math

import pytest
import torch

from lion_lightning.losses import DiscoPOPLoss, EXOLoss, HingeLoss, IPOLoss, RobustLoss, SigmoidLoss
from lion_lightning.types import PairLogps
from tests.unit.losses.chosen_logps import HALF_NAT, LN2, LN3, LN4, answers, random_pairs, with_ratios, zeros


def test_robust_loss_at_a_known_margin() -> None:
    policy, reference = with_ratios([LN3], [0.0])
    # (3/4 ln(4/3) - 1/4 ln 4) / (1 - 1/2)
    expected = (0.75 * HALF_NAT - 0.25 * LN4) / 0.5
    assert RobustLoss(1.0, label_smoothing=0.25)(policy, reference).item() == pytest.approx(expected)


def test_robust_loss_is_unbiased_over_flipped_labels() -> None:
    policy, reference = random_pairs()
    flipped = PairLogps(*policy[::-1]), PairLogps(*reference[::-1])
    robust = RobustLoss(0.3, label_smoothing=0.2)
    torch.testing.assert_close(
        0.8 * robust(policy, reference) + 0.2 * robust(*flipped), SigmoidLoss(0.3)(policy, reference)
    )


def test_hinge_is_zero_from_a_margin_of_one_on() -> None:
    policy, reference = with_ratios([6.0, 1.0, -2.0], [1.0, 0.0, 2.0])
    logps = policy.chosen.tokens.values.requires_grad_()
    loss = HingeLoss(beta=0.25)(policy, reference)  # margins 1.25, 0.25, -1
    assert loss.tolist() == [0.0, 0.75, 2.0]
    assert torch.autograd.grad(loss.sum(), logps)[0].tolist() == [0.0, -0.25, -0.25]


def test_ipo_compares_averages_a_token_of_policy_and_of_reference() -> None:
    policy = PairLogps(answers([-3.0], counts=[3]), answers([-8.0], counts=[2]))
    reference = PairLogps(answers([-9.0], counts=[3]), answers([-4.0], counts=[2]))
    logps = policy.chosen.tokens.values.requires_grad_()
    loss = IPOLoss(beta=0.1)(policy, reference)
    # 6/3 - -4/2 = 4, one nat short of 1 / (2 * 0.1) = 5; slope 2 * (4 - 5) / 3 at each token
    assert loss.item() == pytest.approx(1.0)
    assert torch.autograd.grad(loss.sum(), logps)[0].tolist() == pytest.approx([-2 / 3] * 3)


def test_ipo_does_not_grow_with_length() -> None:
    short = PairLogps(answers([-1.0], counts=[1]), answers([-2.0], counts=[1]))
    long = PairLogps(answers([-50.0], counts=[50]), answers([-60.0], counts=[30]))
    zero = zeros(short), zeros(long)
    assert IPOLoss()(short, zero[0]).item() == IPOLoss()(long, zero[1]).item() == pytest.approx((1 - 5) ** 2)


def test_exo_is_the_reverse_kl_to_the_smoothed_label() -> None:
    policy, reference = with_ratios([LN3, -LN3], [0.0, 0.0])
    # (3/4, 1/4) against (3/4, 1/4) is 0; (1/4, 3/4) against it is 1/4 ln(1/3) + 3/4 ln 3 = ln(3)/2
    assert EXOLoss(1.0, label_smoothing=0.25)(policy, reference).tolist() == pytest.approx([0.0, LN3 / 2])


def test_exo_at_an_extreme_margin_is_the_log_of_the_label_it_contradicts() -> None:
    policy, reference = with_ratios([-1e4, 1e4], [0.0, 0.0])
    expected = [-math.log(0.001), -math.log(0.999)]
    assert EXOLoss(1.0, label_smoothing=0.001)(policy, reference).tolist() == pytest.approx(expected)


def test_discopop_blends_logistic_and_exponential() -> None:
    policy, reference = with_ratios([LN3, 0.0], [0.0, 0.0])
    # w = sigmoid(ln 3) = 3/4: 1/4 ln(4/3) + 3/4 * 1/3; at 0 w = 1/2: (ln 2 + 1) / 2
    expected = [HALF_NAT / 4 + 0.25, (LN2 + 1) / 2]
    assert DiscoPOPLoss(1.0, tau=1.0)(policy, reference).tolist() == pytest.approx(expected)


def test_discopop_of_a_pair_that_is_far_off_is_the_logistic_loss_and_not_nan() -> None:
    policy, reference = with_ratios([-1000.0], [0.0])
    logps = policy.chosen.tokens.values.requires_grad_()
    loss = DiscoPOPLoss(1.0, tau=0.05)(policy, reference)  # e^1000 alone would overflow
    assert loss.item() == pytest.approx(1000.0)
    assert torch.autograd.grad(loss.sum(), logps)[0].item() == pytest.approx(-1.0)
