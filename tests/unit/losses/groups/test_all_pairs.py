"""A preference loss over all pairs of a group is that loss on the pairs made by hand."""

from __future__ import annotations

import pytest
import torch

from lion_lightning.losses import AllPairsLoss, BCOPairLoss, IPOLoss, LDDPOLoss, SigmoidLoss, SimPOLoss
from lion_lightning.types import AnswerLogps, PairLogps
from tests.unit.losses.chosen_logps import LN3, groups_with_ratios, in_groups, random_answers, with_ratios

VALUES = torch.tensor([[0.2, 0.9, 0.5], [1.0, 1.0, 0.0], [0.3, 0.3, 0.3]])
PAIRS = torch.tensor([(1, 0), (1, 2), (2, 0), (3, 5), (4, 5)])  # by number among the nine answers


def pairs_of(answers: AnswerLogps) -> PairLogps:
    return PairLogps(answers.take(PAIRS[:, 0]), answers.take(PAIRS[:, 1]))


@pytest.mark.parametrize("loss", [SigmoidLoss(0.3), IPOLoss(0.3), LDDPOLoss(0.3), SimPOLoss()], ids=type)
def test_it_is_the_mean_or_the_sum_over_the_pairs_of_each_group(loss: SigmoidLoss | IPOLoss) -> None:
    policy, reference = random_answers(9)
    expected = loss(pairs_of(policy), pairs_of(reference))
    sums = torch.stack([expected[:3].sum(), expected[3:].sum(), torch.tensor(0.0).double()])
    grouped = in_groups(policy, 3), in_groups(reference, 3)
    torch.testing.assert_close(AllPairsLoss(loss, "sum")(*grouped, VALUES), sums)
    torch.testing.assert_close(AllPairsLoss(loss)(*grouped, VALUES), sums / torch.tensor([3, 2, 1]))


def test_two_answers_are_dpo() -> None:
    policy, reference = groups_with_ratios([[1.0, -2.0], [0.5, 3.0]])
    expected = SigmoidLoss(0.3)(*with_ratios([1.0, 3.0], [-2.0, 0.5]))
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(AllPairsLoss(SigmoidLoss(0.3))(policy, reference, values), expected)


def test_it_speaks_for_the_loss_within() -> None:
    policy, reference = (in_groups(each, 3) for each in random_answers(9))
    inner = IPOLoss(0.3)
    loss = AllPairsLoss(inner)
    assert loss.beta == 0.3
    assert torch.equal(loss.reduce(policy), policy.means)
    assert torch.equal(loss.rewards(policy, reference), 0.3 * (policy.means - reference.means))
    assert loss.needs_reference
    assert not AllPairsLoss(SimPOLoss()).needs_reference


def test_steps_reach_the_loss_within() -> None:
    inner = BCOPairLoss(1.0)
    loss = AllPairsLoss(inner)
    loss(*groups_with_ratios([[2 * LN3, 0.0]]), torch.tensor([[1.0, 0.0]]))
    loss.after_step(lambda total: total)
    assert inner.shift.item() == pytest.approx(LN3)
