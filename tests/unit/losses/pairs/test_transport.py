"""Losses that compare sorted values over the micro-batch, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from lion_lightning.losses import AOTLoss, AOTUnpairedLoss, SigmoidLoss
from lion_lightning.types import PairLogps
from tests.unit.losses.chosen_logps import HALF_NAT, LN3, LN4, answers, random_pairs, with_ratios


def test_aot_compares_the_sorted_margins_of_policy_and_reference() -> None:
    policy = PairLogps(answers([LN3, 0.0]), answers([0.0, 0.0]))  # margins ln 3, 0
    reference = PairLogps(answers([-1.0, -1.0 - LN3]), answers([-1.0, -1.0]))  # margins 0, -ln 3
    # sorted, (0, ln 3) - (-ln 3, 0) = (ln 3, ln 3); pair by pair that would be (ln 3, ln 3) too: so swap the reference
    swapped = PairLogps(answers([-1.0 - LN3, -1.0]), answers([-1.0, -1.0]))
    for other in (reference, swapped):
        assert AOTLoss(1.0)(policy, other).tolist() == pytest.approx([HALF_NAT, HALF_NAT])
    # pair by pair: (ln 3 - -ln 3, 0 - 0), and sigmoid(2 ln 3) = 9/10
    assert SigmoidLoss(1.0)(policy, swapped).exp().tolist() == pytest.approx([10 / 9, 2.0])


def test_unpaired_aot_compares_the_sorted_rewards_of_the_sides() -> None:
    policy, reference = with_ratios([LN3, 0.0], [-LN3, 0.0])
    # sorted, (0, ln 3) - (-ln 3, 0); pair by pair it would be (2 ln 3, 0)
    assert AOTUnpairedLoss(1.0)(policy, reference).tolist() == pytest.approx([HALF_NAT, HALF_NAT])


def test_label_smoothing_holds_after_sorting() -> None:
    policy, reference = with_ratios([LN3, 0.0], [-LN3, 0.0])
    expected = 0.75 * HALF_NAT + 0.25 * LN4
    loss = AOTUnpairedLoss(1.0, label_smoothing=0.25)(policy, reference)
    assert loss.tolist() == pytest.approx([expected, expected])


@pytest.mark.parametrize("loss", [AOTLoss(0.3), AOTUnpairedLoss(0.3)], ids=["paired", "unpaired"])
def test_for_one_pair_it_is_dpo(loss: AOTLoss | AOTUnpairedLoss) -> None:
    policy, reference = random_pairs(1)
    torch.testing.assert_close(loss(policy, reference), SigmoidLoss(0.3)(policy, reference))


def test_which_rejected_answer_stands_beside_which_chosen_one_changes_nothing_if_unpaired() -> None:
    policy, reference = random_pairs(4)
    others = []
    for one in (policy, reference):
        backwards = answers(one.rejected.sums.flip(0), one.rejected.counts.flip(0).tolist())
        others.append(PairLogps(one.chosen, backwards))
    torch.testing.assert_close(AOTUnpairedLoss(0.3)(*others), AOTUnpairedLoss(0.3)(policy, reference))
