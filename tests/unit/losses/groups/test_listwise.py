"""Losses of rankings, worked out by hand."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import pytest
import torch
from torch import Tensor

from lion_lightning.losses import LambdaLoss, PlackettLuceLoss, SigmoidLoss
from tests.unit.losses.chosen_logps import LN2, LN3, groups_with_ratios, with_ratios

HALF_DISCOUNT = 1 - 1 / math.log2(3)  # |1 / log2(2) - 1 / log2(3)|


def test_the_likelihood_of_a_ranking_is_that_of_picking_the_best_of_what_is_left() -> None:
    # weights e^r: 3, 1, 2 with values 0.1, 0.9, 0.5, so the ranking is 1, 2, 3: 1/6 * 2/5 * 3/3
    policy, reference = groups_with_ratios([[LN3, 0.0, LN2]])
    loss = PlackettLuceLoss(1.0)(policy, reference, torch.tensor([[0.1, 0.9, 0.5]]))
    assert loss.item() == pytest.approx(math.log(15))


def test_the_likelihoods_of_all_rankings_add_up_to_1() -> None:
    policy, reference = groups_with_ratios([[0.3, -1.2, 2.0, 0.7]] * 24)
    values = torch.tensor(list(permutations([0.0, 1.0, 2.0, 3.0])))
    assert (-PlackettLuceLoss(0.5)(policy, reference, values)).exp().sum().item() == pytest.approx(1.0)


def test_equal_values_are_not_picked_from_each_other() -> None:
    # weights 3, 1, 2: the best, 3, is picked from all: 3/6; the other two from themselves alone
    policy, reference = groups_with_ratios([[LN3, 0.0, LN2], [LN3, 0.0, LN2], [LN3, 0.0, LN2]])
    values = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.5, 0.5, 0.5]])
    loss = PlackettLuceLoss(1.0)(policy, reference, values)
    # tied at the top, 1 and 2 are each picked from themselves and 3: 1/4 * 2/5
    assert loss.tolist() == pytest.approx([LN2, math.log(10), 0.0])


def test_a_group_of_equal_values_has_no_gradient() -> None:
    policy, reference = groups_with_ratios([[LN3, 0.0]])
    logps = policy.tokens.values.requires_grad_()
    for loss in (PlackettLuceLoss(1.0), LambdaLoss(1.0)):
        total = loss(policy, reference, torch.tensor([[2.0, 2.0]])).sum()
        assert total.item() == 0.0
        assert torch.autograd.grad(total, logps, retain_graph=True)[0].tolist() == [0.0, 0.0]


def test_two_answers_are_dpo_and_lambda_weighs_them() -> None:
    policy, reference = groups_with_ratios([[1.0, -2.0], [0.5, 3.0]])
    values = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    expected = SigmoidLoss(0.3)(*with_ratios([1.0, 3.0], [-2.0, 0.5]))
    torch.testing.assert_close(PlackettLuceLoss(0.3)(policy, reference, values), expected)
    gains = torch.tensor([2.0 - 1.0, 2**0.75 - 2**0.25], dtype=torch.float64)
    weighted = LambdaLoss(0.3)(policy, reference, values)
    torch.testing.assert_close(weighted, expected * gains * HALF_DISCOUNT, rtol=1e-6, atol=0)


def lambda_by_pairs(rewards: list[float], labels: list[float]) -> float:
    """Eq. 8 to 10, pair by pair."""
    ranked = sorted(range(len(rewards)), key=lambda i: -rewards[i])
    ranks = {answer: rank for rank, answer in enumerate(ranked, 1)}
    total = 0.0
    for i, j in permutations(range(len(rewards)), 2):
        if labels[i] > labels[j]:
            gain = abs(2 ** labels[i] - 2 ** labels[j])
            discount = abs(1 / math.log2(1 + ranks[i]) - 1 / math.log2(1 + ranks[j]))
            total += gain * discount * math.log1p(math.exp(rewards[j] - rewards[i]))
    return total


def test_lambda_weighs_each_pair_by_gain_and_discount() -> None:
    rewards, labels = [0.2, -1.0, 0.9, 0.4], [0.3, 1.0, 0.3, 0.0]
    policy, reference = groups_with_ratios([[2 * reward for reward in rewards]] * 2)
    scores = [1 + 9 * label for label in labels]
    plain = LambdaLoss(0.5)(policy, reference, torch.tensor([labels, labels], dtype=torch.float64))
    scaled = LambdaLoss(0.5, lowest=1, highest=10)(policy, reference, torch.tensor([scores, scores]).double())
    assert plain.tolist() == pytest.approx([lambda_by_pairs(rewards, labels)] * 2)
    assert scaled.tolist() == pytest.approx(plain.tolist())


def test_no_gradient_flows_through_the_weights_of_lambda() -> None:
    policy, reference = groups_with_ratios([[1.0, -2.0]])
    logps = policy.tokens.values.requires_grad_()
    loss = LambdaLoss(1.0)(policy, reference, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    slope = -HALF_DISCOUNT / (1 + math.exp(3.0))  # -weight * sigmoid(-3)
    assert torch.autograd.grad(loss.sum(), logps)[0].tolist() == pytest.approx([slope, -slope])


def test_the_order_of_a_group_changes_nothing() -> None:
    torch.manual_seed(0)
    ratios, values = torch.randn(5, dtype=torch.float64), torch.tensor([0.0, 0.5, 0.5, 0.2, 1.0]).double()
    for loss in (PlackettLuceLoss(0.5), LambdaLoss(0.5)):
        found: list[Tensor] = []
        for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3], [3, 1, 4, 0, 2]):
            found.append(loss(*groups_with_ratios([ratios[order].tolist()]), values[order][None]))
        assert all(torch.allclose(one, other) for one, other in pairwise(found))


def test_a_value_far_above_the_range_is_refused_and_one_within_it_is_not() -> None:
    ratios, values = [[1.0, 0.0]], torch.tensor([[200.0, 100.0]])
    with pytest.raises(ValueError, match=r"a value of 200 is too far above the range from 0 to 1.* set lowest and"):
        LambdaLoss(1.0).check_values([200.0, 100.0])
    LambdaLoss(1.0, highest=200.0).check_values([200.0, 100.0])
    # labels 1 and 0.5: (2 - sqrt 2) (1 - 1 / log2 3) ln(1 + e^-1)
    weight = (2 - math.sqrt(2)) * (1 - 1 / math.log2(3))
    loss = LambdaLoss(1.0, highest=200.0)(*groups_with_ratios(ratios), values)
    assert loss.item() == pytest.approx(weight * math.log1p(math.exp(-1)))


def test_rewards_of_ten_thousand_are_finite() -> None:
    policy, reference = groups_with_ratios([[1e4, -1e4, 0.0]])
    logps = policy.tokens.values.requires_grad_()
    values = torch.tensor([[0.0, 1.0, 0.5]])
    total = PlackettLuceLoss(1.0)(policy, reference, values).sum() + LambdaLoss(1.0)(policy, reference, values).sum()
    assert total.isfinite()
    assert torch.autograd.grad(total, logps)[0].isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"lowest": float("nan")}, "LambdaLoss: lowest is nan; give a number that is finite"),
        ({"highest": 0.0}, "LambdaLoss: highest is 0.0; give a number above lowest, which is 0.0"),
        ({"lowest": 3.0}, "LambdaLoss: highest is 1.0; give a number above lowest, which is 3.0"),
        ({"highest": float("inf")}, "LambdaLoss: highest is inf; give a number above lowest, which is 0.0"),
    ],
)
def test_a_range_that_is_none_is_refused(arguments: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        LambdaLoss(**arguments)
    assert str(error.value) == complaint
