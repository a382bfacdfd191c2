"""Losses without a reference, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lion_lightning.losses import ChosenNLLLoss, CPOLoss, ORPOLoss, ReferenceFreeLoss, SimPOLoss
from lion_lightning.losses.pairs.reference_free import log_odds
from lion_lightning.types import PairLogps
from tests.unit.losses.chosen_logps import HALF_NAT, LN2, LN3, answers, random_pairs, with_tokens, zeros

# Means -1 over 2 tokens and -2 over 3.
POLICY = PairLogps(answers([-2.0], counts=[2]), answers([-6.0], counts=[3]))
EVERY: list[ReferenceFreeLoss] = [ChosenNLLLoss(), SimPOLoss(), CPOLoss(), ORPOLoss()]


def slope(loss: ReferenceFreeLoss) -> tuple[float, float]:
    """Derivatives by a token of chosen and of rejected, which are the same at all of them."""
    tokens = [side.tokens.values.clone().requires_grad_() for side in POLICY]
    total = loss(PairLogps(*map(with_tokens, POLICY, tokens)), zeros(POLICY)).sum()
    slopes = torch.autograd.grad(total, tokens, materialize_grads=True)
    assert all(torch.equal(slope, slope[:1].expand_as(slope)) for slope in slopes)
    return slopes[0][0].item(), slopes[1][0].item()


def test_chosen_nll_is_a_mean_over_tokens_and_blind_to_the_rejected_answer() -> None:
    assert ChosenNLLLoss()(POLICY, zeros(POLICY)).tolist() == [1.0]
    assert slope(ChosenNLLLoss()) == (-0.5, 0.0)


def test_simpo_wants_means_a_token_to_differ_by_gamma() -> None:
    loss = SimPOLoss(beta=2.0, gamma=2.0 - LN3)  # 2 * (-1 - -2) - (2 - ln 3) = ln 3
    assert loss(POLICY, zeros(POLICY)).item() == pytest.approx(HALF_NAT)
    assert [side.item() for side in loss.rewards(POLICY, zeros(POLICY))] == [-2.0, -4.0]
    # -sigmoid(-ln 3) * beta / count = -1/4 * 2/2 and 1/4 * 2/3
    assert slope(loss) == pytest.approx((-1 / 4, 1 / 6))


def test_cpo_adds_the_chosen_answers_mean_nll() -> None:
    loss = CPOLoss(beta=LN3 / 4, alpha=0.5)  # ln 3 / 4 * (-2 - -6) = ln 3; mean NLL 1
    assert loss(POLICY, zeros(POLICY)).item() == pytest.approx(HALF_NAT + 0.5)
    # -1/4 * ln 3 / 4 - 0.5 / 2 and 1/4 * ln 3 / 4
    assert slope(loss) == pytest.approx((-LN3 / 16 - 0.25, LN3 / 16))


def test_orpo_adds_the_log_odds_ratio_to_the_nll() -> None:
    # p = 3/4 and 1/2 a token: odds 3 and 1, so the log-odds ratio is ln 3
    policy = PairLogps(answers([2 * math.log(0.75)], counts=[2]), answers([-3 * LN2], counts=[3]))
    loss = ORPOLoss(beta=0.4)(policy, zeros(policy))
    assert loss.item() == pytest.approx(HALF_NAT + 0.4 * HALF_NAT)


def test_log_odds_are_exact_where_p_is_nearly_1() -> None:
    logps = torch.tensor([-1e-5, -1e-3], requires_grad=True)
    values = log_odds(logps)
    # log(p / (1 - p)) with 1 - p = 1 - e^-x = x - x^2/2 + ...: -x - log(x) + x/2
    expected = [-x - math.log(x) + x / 2 for x in (1e-5, 1e-3)]
    assert values.tolist() == pytest.approx(expected, rel=1e-6)  # log(1 - exp(logp)) in fp32 is off by 1e-3 here
    # d log-odds / d log p = 1 / (1 - p)
    slopes = torch.autograd.grad(values.sum(), logps)[0].tolist()
    assert slopes == pytest.approx([1 / -math.expm1(-x) for x in (1e-5, 1e-3)], rel=1e-5)


def test_log_odds_of_certainty_are_finite_and_so_is_their_gradient() -> None:
    logps = torch.tensor([0.0, -200.0], requires_grad=True)
    values = log_odds(logps)
    assert values.tolist() == pytest.approx([-math.log(2**-23), -200.0], rel=1e-5)
    assert torch.autograd.grad(values.sum(), logps)[0].tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("loss", EVERY, ids=lambda loss: type(loss).__name__)
def test_a_reference_that_is_there_for_other_losses_changes_nothing(loss: ReferenceFreeLoss) -> None:
    policy, reference = random_pairs()
    assert not loss.needs_reference
    assert torch.equal(loss(policy, reference), loss(policy, zeros(policy)))
    assert torch.equal(loss.rewards(policy, reference).chosen, loss.rewards(policy, zeros(policy)).chosen)
