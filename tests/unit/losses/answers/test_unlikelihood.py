"""Unlikelihood, worked out by hand, and the log of 1 - p near its ends."""

from __future__ import annotations

import math

import pytest
import torch

from lion_lightning.losses import UnlikelihoodLoss
from lion_lightning.losses.answers.unlikelihood import log_complement
from lion_lightning.types import AnswerLogps, TokenLogps
from tests.unit.losses.chosen_logps import LN2, answers, random_answers

LABELS = torch.tensor([True, False])


def two() -> AnswerLogps:
    """A good answer of tokens of probability 1/2 and 1/4, and a bad one of 1/2, 3/4 and 1/4."""
    logps = torch.tensor([0.5, 0.25, 0.5, 0.75, 0.25], dtype=torch.float64).log()
    return AnswerLogps(TokenLogps(logps), torch.tensor([0, 0, 1, 1, 1]), torch.tensor([2.0, 3.0]))


def test_good_answers_are_likely_and_bad_ones_unlikely_token_by_token() -> None:
    policy = two()
    logps = policy.tokens.values.requires_grad_()
    loss = UnlikelihoodLoss(alpha=2.0)(policy, policy, LABELS)
    # -log(1/2) - log(1/4) = 3 ln 2; -2 (log(1/2) + log(1/4) + log(3/4)) = 2 (5 ln 2 - ln 3)
    assert loss.tolist() == pytest.approx([3 * LN2, 2 * (5 * LN2 - math.log(3))])
    # -1; alpha p / (1 - p) = 2 * 1, 2 * 3, 2 * 1/3
    assert torch.autograd.grad(loss.sum(), logps)[0].tolist() == pytest.approx([-1, -1, 2, 6, 2 / 3])


def test_it_logs_log_probs_whatever_the_reference_is() -> None:
    policy, reference = random_answers(2)
    loss = UnlikelihoodLoss()
    assert not loss.needs_reference
    assert torch.equal(loss.rewards(policy, reference), policy.sums)
    assert torch.equal(loss(policy, reference, LABELS), loss(policy, answers([0.0, 0.0]), LABELS))


def test_the_log_of_one_minus_p_is_exact_for_p_near_1() -> None:
    logps = torch.tensor([-1e-5, -1e-3, -50.0], requires_grad=True)
    values = log_complement(logps)
    assert values.tolist() == pytest.approx([math.log(-math.expm1(x)) for x in (-1e-5, -1e-3, -50.0)], rel=1e-6)
    slopes = torch.autograd.grad(values.sum(), logps)[0].tolist()  # -p / (1 - p)
    assert slopes == pytest.approx([-math.exp(x) / -math.expm1(x) for x in (-1e-5, -1e-3, -50.0)], rel=1e-4)


def test_a_certain_token_costs_a_finite_loss_and_can_be_unlearned() -> None:
    logps = torch.zeros(1, requires_grad=True)
    value = log_complement(logps)
    assert value.item() == pytest.approx(-23 * LN2)  # the last number below 1 is 1 - 2^-23
    assert torch.autograd.grad(value.sum(), logps)[0].item() == pytest.approx(-(2.0**23), rel=1e-5)


def test_alpha_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"^UnlikelihoodLoss: alpha is -1.0; give a number of at least 0$"):
        UnlikelihoodLoss(-1.0)
