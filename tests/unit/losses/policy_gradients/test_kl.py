"""KL penalties: their values, and what they and their gradients are in expectation over a tiny policy's answers."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from lion_lightning.losses import (
    K1,
    K2,
    K3,
    DAPOLoss,
    KLInReward,
    KLPenalty,
    PolicyGradientLoss,
    REINFORCELoss,
    RLOOLoss,
)
from lion_lightning.losses.policy_gradients.kl import LARGEST_LOG_RATIO
from lion_lightning.types import AnswerLogps, TokenLogps
from tests.unit.losses.chosen_logps import LN2, groups_of

VOCABULARY = 3
ANSWERS = torch.tensor(list(product(range(VOCABULARY), repeat=2)))
"""All answers of two tokens."""
REWARDS = torch.linspace(-1, 2, len(ANSWERS)).square()  # of each answer


class Tabular:
    """A policy over the answers of two tokens: logits of the first token, and of the second behind each."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(1 + VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64).requires_grad_()

    def logps(self) -> Tensor:
        """``(answers, 2)`` log-prob of each token of each answer."""
        table = self.logits.log_softmax(-1)
        return torch.stack([table[0, ANSWERS[:, 0]], table[1 + ANSWERS[:, 0], ANSWERS[:, 1]]], 1)

    def groups(self, chosen: Tensor) -> AnswerLogps:
        """Groups of answers by their numbers ``(groups, n)``."""
        tokens = self.logps()[chosen.reshape(-1)]
        owners = torch.arange(chosen.numel()).repeat_interleave(2)
        return AnswerLogps(TokenLogps(tokens.reshape(-1)), owners, torch.full(chosen.shape, 2.0).double())

    def gradient(self, value: Tensor) -> Tensor:
        return torch.autograd.grad(value, self.logits)[0]


POLICY, REFERENCE = Tabular(0), Tabular(1)
EACH = torch.arange(len(ANSWERS))


def divergence() -> Tensor:
    """KL of policy to reference over whole answers."""
    own, other = (model.logps().sum(1) for model in (POLICY, REFERENCE))
    return (own.exp() * (own - other)).sum()


def divergences_by_token(own: Tabular, other: Tabular) -> Tensor:
    """KL of each token's distribution, behind prefixes as the policy, held fixed, makes them."""
    ours, theirs = (model.logits.log_softmax(-1) for model in (own, other))
    each = (ours.exp() * (ours - theirs)).sum(-1)
    prefixes = torch.cat([torch.ones(1), POLICY.logits[0].softmax(-1).detach()])
    return (prefixes * each).sum()


def expected(kl: KLPenalty) -> Tensor:
    """Mean of an estimate over all answers, each as often as the policy samples it; not differentiated by how often."""
    estimates = POLICY.groups(EACH).sum(kl.estimate(POLICY.groups(EACH), REFERENCE.groups(EACH)))
    return (POLICY.logps().sum(1).exp().detach() * estimates).sum()


def expected_gradient(loss: PolicyGradientLoss, rewards: Tensor, number: int) -> Tensor:
    """Gradient of a loss, in expectation over all groups of so many answers."""
    chosen = torch.cartesian_prod(*[EACH] * number).reshape(-1, number)
    probabilities = POLICY.logps().sum(1).detach()[chosen].sum(1).exp()  # (groups,)
    losses = loss(POLICY.groups(chosen), REFERENCE.groups(chosen), rewards[chosen])
    return POLICY.gradient((probabilities * losses).sum())


def test_values_of_each_token() -> None:
    policy, reference = groups_of([[[LN2, -LN2, 0.0], [1.0]]]), groups_of([[[0.0, 0.0, 0.0], [3.0]]])
    # d = ln 2, -ln 2, 0 and -2
    for kl in (K1(), KLInReward()):
        assert kl.estimate(policy, reference).tolist() == [LN2, -LN2, 0.0, -2.0]
    assert K2().estimate(policy, reference).tolist() == pytest.approx([LN2**2 / 2, LN2**2 / 2, 0.0, 2.0])
    third = K3().estimate(policy, reference).tolist()
    assert third == pytest.approx([0.1931472, 0.3068528, 0.0, torch.e**2 - 3])


def test_k3_is_finite_wherever_a_log_prob_is() -> None:
    policy = groups_of([[[-1000.0], [0.0]]])
    reference = groups_of([[[0.0], [-1000.0]]])
    largest = torch.tensor(LARGEST_LOG_RATIO, dtype=torch.float64)
    assert K3().estimate(policy, reference).tolist() == pytest.approx([(largest.exp() - 1 - largest).item(), 39.0])


def test_k1_is_the_divergence_and_its_gradient_is_zero() -> None:
    torch.testing.assert_close(expected(K1()), divergence())
    torch.testing.assert_close(POLICY.gradient(expected(K1())), torch.zeros_like(POLICY.logits))


def test_the_gradient_of_k2_is_that_of_each_tokens_divergence() -> None:
    assert (expected(K2()) - divergence()).abs() > 0.05  # biased
    torch.testing.assert_close(
        POLICY.gradient(expected(K2())), POLICY.gradient(divergences_by_token(POLICY, REFERENCE))
    )
    # behind fixed prefixes, which is not all: the first token decides how far the second is off
    whole = POLICY.gradient(divergence())
    torch.testing.assert_close(POLICY.gradient(expected(K2()))[1:], whole[1:])
    assert (POLICY.gradient(expected(K2()))[0] - whole[0]).abs().max() > 0.01


def test_k3_is_the_divergence_and_its_gradient_that_of_the_other_one() -> None:
    torch.testing.assert_close(expected(K3()), divergence())
    torch.testing.assert_close(
        POLICY.gradient(expected(K3())), POLICY.gradient(divergences_by_token(REFERENCE, POLICY))
    )


def test_weighted_by_the_ratio_the_gradient_of_k3_is_that_of_each_tokens_divergence() -> None:
    loss = DAPOLoss(beta=0.3, kl=K3(weighted=True))  # a sum over tokens, here of two answers
    gradient = expected_gradient(loss, torch.zeros(len(ANSWERS)), 2)
    torch.testing.assert_close(gradient, 2 * 0.3 * POLICY.gradient(divergences_by_token(POLICY, REFERENCE)))


@pytest.mark.parametrize("loss", [RLOOLoss(beta=0.3), REINFORCELoss(beta=0.3), REINFORCELoss(False, beta=0.3)])
def test_in_the_reward_the_gradient_is_that_of_expected_reward_and_divergence_of_whole_answers(
    loss: PolicyGradientLoss,
) -> None:
    nothing = torch.zeros(len(ANSWERS))
    torch.testing.assert_close(expected_gradient(loss, nothing, 2), 0.3 * POLICY.gradient(divergence()))
    reward = (POLICY.logps().sum(1).exp() * REWARDS).sum()
    torch.testing.assert_close(expected_gradient(loss, REWARDS, 2), -POLICY.gradient(reward - 0.3 * divergence()))


def test_a_baseline_of_the_run_changes_no_gradient_in_expectation() -> None:
    loss, reward = REINFORCELoss(), (POLICY.logps().sum(1).exp() * REWARDS).sum()
    expected_gradient(loss, REWARDS, 2)
    loss.after_step(lambda share: share)
    assert loss.mean_reward is not None
    assert loss.mean_reward.mean > 0.5
    torch.testing.assert_close(expected_gradient(loss, REWARDS, 2), -POLICY.gradient(reward))
