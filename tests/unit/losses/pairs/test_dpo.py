"""Losses of the logistic form, worked out by hand: sigmoid(ln 3) is 3/4, so -log sigmoid(ln 3) is ln(4/3)."""

from __future__ import annotations

import pytest
import torch

from lion_lightning.losses import (
    AlphaDivergence,
    DPOPLoss,
    ForwardKL,
    LDDPOLoss,
    RDPOLoss,
    SigmoidLoss,
    SigmoidNormLoss,
)
from lion_lightning.types import PairLogps
from tests.unit.losses.chosen_logps import HALF_NAT, LN2, LN3, LN4, answers, random_pairs, with_ratios


def test_sigmoid_loss_and_its_gradient_at_a_known_margin() -> None:
    policy, reference = with_ratios([4.0], [-2.0])
    logps = policy.chosen.tokens.values.requires_grad_()
    loss = SigmoidLoss(beta=LN3 / 6)(policy, reference)  # beta * (4 + 2) = ln 3
    assert loss.item() == pytest.approx(HALF_NAT)
    # d(-log sigmoid(beta x))/dx = -beta * sigmoid(-beta x) = -beta / 4
    assert torch.autograd.grad(loss.sum(), logps)[0].item() == pytest.approx(-LN3 / 24)


def test_step_0_is_ln_2_with_rewards_of_zero() -> None:
    policy, _ = random_pairs()
    assert SigmoidLoss()(policy, policy).tolist() == pytest.approx([LN2] * 5)
    assert SigmoidLoss().rewards(policy, policy).margin.abs().max() == 0


def test_label_smoothing_mixes_the_loss_of_the_label_and_of_its_opposite() -> None:
    policy, reference = with_ratios([LN3], [0.0])
    loss = SigmoidLoss(1.0, label_smoothing=0.25)(policy, reference)
    # 3/4 * -log(3/4) + 1/4 * -log(1/4): the entropy of (3/4, 1/4), the least that this smoothing allows
    assert loss.item() == pytest.approx(0.75 * HALF_NAT + 0.25 * LN4)


def test_smoothed_losses_of_a_pair_and_its_swap_add_up_to_the_plain_ones() -> None:
    policy, reference = random_pairs()
    swapped = PairLogps(*policy[::-1]), PairLogps(*reference[::-1])
    smoothed, plain = SigmoidLoss(0.3, 0.2), SigmoidLoss(0.3)
    torch.testing.assert_close(
        smoothed(policy, reference) + smoothed(*swapped), plain(policy, reference) + plain(*swapped)
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_a_margin_of_ten_thousand_nats_has_a_finite_loss_and_gradient(sign: int) -> None:
    policy, reference = with_ratios([sign * 1e4], [0.0])
    logps = policy.chosen.tokens.values.requires_grad_()
    loss = SigmoidLoss(1.0)(policy, reference)
    assert loss.item() == (0.0 if sign > 0 else 1e4)
    assert torch.autograd.grad(loss.sum(), logps)[0].item() == (0.0 if sign > 0 else -1.0)


def test_a_divergence_changes_loss_and_rewards_alike() -> None:
    policy, reference = with_ratios([LN2], [-LN2])
    loss = SigmoidLoss(LN3 / 1.5, divergence=ForwardKL())
    # f'(2) = 1 - 1/2 = 1/2 and f'(1/2) = 1 - 2 = -1: the margin is 3/2, and beta * 3/2 = ln 3
    assert [side.item() for side in loss.rewards(policy, reference)] == pytest.approx([LN3 / 3, -LN3 / 1.5])
    assert loss(policy, reference).item() == pytest.approx(HALF_NAT)


def test_a_divergence_keeps_the_loss_of_step_0() -> None:
    policy, _ = random_pairs()
    loss = SigmoidLoss(divergence=AlphaDivergence(0.3))
    assert loss(policy, policy).tolist() == pytest.approx([LN2] * 5)


def test_length_normalized_loss_divides_each_side_by_its_own_count() -> None:
    policy = PairLogps(answers([-2.0], counts=[4]), answers([-9.0], counts=[3]))
    reference = PairLogps(answers([-6.0], counts=[4]), answers([-6.0], counts=[3]))
    # ratios 4 over 4 tokens and -3 over 3: margin 1 + 1
    loss = SigmoidNormLoss(beta=LN3 / 2)
    assert loss(policy, reference).item() == pytest.approx(HALF_NAT)
    assert [side.item() for side in loss.rewards(policy, reference)] == pytest.approx([LN3 / 2, -LN3 / 2])


def test_ld_dpo_weighs_the_longer_answers_tail_under_policy_and_reference() -> None:
    policy = PairLogps(answers([-6.0], counts=[5], shared=[-2.0], shared_counts=[2]), answers([-3.0], counts=[2]))
    reference = PairLogps(answers([-11.0], counts=[5], shared=[-3.0], shared_counts=[2]), answers([-2.0], counts=[2]))
    # chosen: (-2 + -4/2) - (-3 + -8/2) = 3; rejected: -3 - -2 = -1; margin 4
    assert LDDPOLoss(beta=LN3 / 4, alpha=0.5)(policy, reference).item() == pytest.approx(HALF_NAT)


@pytest.mark.parametrize(("alpha", "margin"), [(1.0, 6.0), (0.0, 2.0)])
def test_ld_dpo_is_dpo_at_1_and_blind_to_the_tail_at_0(alpha: float, margin: float) -> None:
    policy = PairLogps(answers([-6.0], counts=[5], shared=[-2.0], shared_counts=[2]), answers([-3.0], counts=[2]))
    reference = PairLogps(answers([-11.0], counts=[5], shared=[-3.0], shared_counts=[2]), answers([-2.0], counts=[2]))
    assert LDDPOLoss(1.0, alpha).rewards(policy, reference).margin.item() == pytest.approx(margin)


def test_dpop_takes_the_chosen_answers_loss_of_likelihood_off_the_margin() -> None:
    policy, reference = with_ratios([-1.0], [-3.0])
    logps = policy.chosen.tokens.values.requires_grad_()
    loss = DPOPLoss(beta=0.5, penalty=2.0)(policy, reference)
    # 0.5 * ((-1 + 3) - 2 * 1) = 0, so the loss is ln 2, and its slope -sigmoid(0) * 0.5 * (1 + 2)
    assert loss.item() == pytest.approx(LN2)
    assert torch.autograd.grad(loss.sum(), logps)[0].item() == pytest.approx(-0.75)


def test_dpop_is_dpo_while_the_chosen_answer_gains() -> None:
    policy, reference = with_ratios([1.0, 2.0], [-3.0, 5.0])
    assert torch.equal(DPOPLoss(0.5)(policy, reference), SigmoidLoss(0.5)(policy, reference))


def test_r_dpo_asks_less_of_a_chosen_answer_that_is_longer() -> None:
    same = PairLogps(answers([-5.0, -5.0], counts=[5, 2]), answers([-5.0, -5.0], counts=[2, 5]))
    # policy = reference: only alpha * (5 - 2) = ln 3 is left, and -ln 3 where the chosen one is shorter
    assert RDPOLoss(0.1, alpha=LN3 / 3)(same, same).tolist() == pytest.approx([HALF_NAT, LN4])


def test_r_dpo_logs_rewards_without_the_price_of_length() -> None:
    policy, reference = random_pairs()
    assert torch.equal(
        RDPOLoss(0.3, alpha=2.0).rewards(policy, reference).margin, SigmoidLoss(0.3).rewards(policy, reference).margin
    )
