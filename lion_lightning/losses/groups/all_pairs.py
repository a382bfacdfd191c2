"""A loss of pairs over all pairs of a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from typing_extensions import override

from lion_lightning.losses.groups.group import GroupLoss
from lion_lightning.losses.pairs.dpo import SigmoidLoss
from lion_lightning.losses.pairs.preference import PreferenceLoss
from lion_lightning.types import AnswerLogps, PairLogps


class AllPairsLoss(GroupLoss):
    """A preference loss over all pairs of each group, the answer with the higher value chosen; equal ones make no pair.

    Trees with all pairs under ``DPOModule`` weigh every pair the same, and so prompts by their number of pairs; here
    every prompt weighs the same. It waits for the device in each micro-batch, since values say how many pairs there
    are.

    Args:
        loss: Loss per pair; None for :class:`~lion_lightning.losses.pairs.dpo.SigmoidLoss`.
        reduction: ``mean`` over the pairs of a group (a group without any has a loss of 0), or their ``sum``.
    """

    def __init__(self, loss: PreferenceLoss | None = None, reduction: Literal["mean", "sum"] = "mean") -> None:
        loss = loss or SigmoidLoss()
        super().__init__(loss.beta)
        self.loss, self.reduction = loss, reduction
        self.needs_reference = loss.needs_reference

    @override
    def reduce(self, answer: AnswerLogps) -> Tensor:
        return self.loss.reduce(answer)

    @override
    def log_ratios(self, policy: AnswerLogps, reference: AnswerLogps) -> Tensor:
        return self.loss.log_ratios(PairLogps(policy, policy), PairLogps(reference, reference)).chosen

    @override
    def rewards(self, policy: AnswerLogps, reference: AnswerLogps) -> Tensor:
        return self.loss.rewards(PairLogps(policy, policy), PairLogps(reference, reference)).chosen

    @override
    def forward(self, policy: AnswerLogps, reference: AnswerLogps, values: Tensor) -> Tensor:
        better = values[:, :, None] > values[:, None, :]  # (groups, n, n)
        groups, chosen, rejected = better.nonzero().unbind(1)  # (pairs,) each
        first = groups * values.shape[1]  # of the group, among all answers
        sides = (first + chosen, first + rejected)
        own, other = (PairLogps(*map(answers.take, sides)) for answers in (policy, reference))
        losses: Tensor = self.loss(own, other)
        totals = losses.new_zeros(len(values)).index_add(0, groups, losses)
        return totals / better.sum((1, 2)).clamp_min(1) if self.reduction == "mean" else totals

    @override
    def after_step(self, add_up: Callable[[Tensor], Tensor]) -> None:
        self.loss.after_step(add_up)
