"""Log-probs of a batch by target, answer and pair, and what an objective makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class TokenLogps(NamedTuple):
    """Values for each target of a batch under one model.

    Attributes:
        values: ``(targets,)`` fp32 log-probability of each target; differentiable where a policy's forward made it.
        top1_correct: ``(targets,)`` bool, whether the target was the most probable token; None where only the
            log-probs are known, as from a cache.
        log_collision_prob: ``(targets,)`` fp32 log of the sum of the squared probabilities of the full vocabulary: the
            log-prob that a token drawn there has on average, which WPO compares a target with; None as above.
        entropy: ``(targets,)`` fp32 entropy of the distribution that each target is drawn from, in nats; None where it
            was not asked for.
    """

    values: Tensor
    top1_correct: Tensor | None = None
    log_collision_prob: Tensor | None = None
    entropy: Tensor | None = None

    def take(self, index: Tensor) -> TokenLogps:
        """The targets at these positions."""
        values, *others = (None if each is None else each[index] for each in self)
        assert values is not None
        return TokenLogps(values, *others)


@dataclass(frozen=True, eq=False)
class AnswerLogps:
    """Log-probs of answers under one model, token by token and summed.

    The shape of the answers is ``(answers,)``; ``(pairs,)`` for one side of pairs, in which an answer may come several
    times; ``(groups, n)`` for prompts with n answers each.

    Attributes:
        tokens: ``(targets,)`` log-probs of the answers' targets, one answer after the other.
        owners: ``(targets,)`` int64 number of the answer that each target belongs to, ascending.
        counts: Number of each answer's targets, in the shape of the answers, fp32.
    """

    tokens: TokenLogps
    owners: Tensor
    counts: Tensor

    @cached_property
    def sums(self) -> Tensor:
        """Log-prob of each answer: the sum over its targets."""
        with torch.enable_grad():  # kept for all readers: the first may be one that wants no gradient
            return self.sum(self.tokens.values)

    @property
    def means(self) -> Tensor:
        """Log-prob a token of each answer."""
        return self.sums / self.counts.clamp_min(1.0)

    def sum(self, values: Tensor) -> Tensor:
        """Add up a value for each target by answer.

        Args:
            values: ``(targets,)``.
        """
        flat = values.new_zeros(self.counts.numel()).index_add(0, self.owners, values)
        return flat.reshape(self.counts.shape)

    def detach(self) -> AnswerLogps:
        """The same log-probs without a gradient."""
        return AnswerLogps(self.tokens._replace(values=self.tokens.values.detach()), self.owners, self.counts)

    def take(self, positions: Tensor) -> AnswerLogps:
        """Some of the answers, tokens and all.

        Args:
            positions: ``(k,)`` int64, among all answers counted through; any may come several times.
        """
        all_counts = self.counts.reshape(-1).long()
        starts, counts = (all_counts.cumsum(0) - all_counts)[positions], all_counts[positions]
        owners = torch.arange(len(positions), device=positions.device).repeat_interleave(counts)
        shifts = starts - (counts.cumsum(0) - counts)  # from a token's new place to its old one
        index = torch.arange(len(owners), device=owners.device) + shifts[owners]
        return AnswerLogps(self.tokens.take(index), owners, self.counts.reshape(-1)[positions])

    def first(self, numbers: Tensor) -> Tensor:
        """Log-prob of the first targets of each answer.

        Args:
            numbers: How many, in the shape of the answers.
        """
        counts = self.counts.reshape(-1).long()
        starts = counts.cumsum(0) - counts
        places = torch.arange(len(self.owners), device=self.owners.device) - starts[self.owners]  # within its answer
        return self.sum(self.tokens.values * (places < numbers.reshape(-1)[self.owners]))


class PairLogps(NamedTuple):
    """Log-probs of preference pairs, under a policy or a reference.

    Attributes:
        chosen: Of the preferred answers, ``(pairs,)``.
        rejected: Of the others.
    """

    chosen: AnswerLogps
    rejected: AnswerLogps


class SumOver(NamedTuple):
    """A metric that is not a mean over the items: of desirable answers alone, say, or of pairs where items are prompts.

    Attributes:
        total: Scalar sum.
        number: Scalar number of what was added up. Where a global step (or a data set) has none, the mean is NaN.
    """

    total: Tensor
    number: Tensor


@dataclass(frozen=True)
class LossOutput:
    """Result of ``AlignmentModule.compute_loss`` for a micro-batch.

    Totals, not means: the module divides by the items of the global step (all micro-batches of an accumulation window
    on all ranks), so that a gradient never depends on how the rows were split.

    Attributes:
        total: Scalar sum of the loss over the items; differentiable.
        num_items: Scalar number of items: supervised tokens for SFT, or the sum of their weights; pairs for DPO;
            labeled answers for KTO; prompts for groups.
        metrics: Sums over the same items, by log key, each logged as its mean over the items of the global step; or a
            :class:`SumOver`, logged as the mean over its own number. Every micro-batch has the same keys.
    """

    total: Tensor
    num_items: Tensor
    metrics: Mapping[str, Tensor | SumOver] = field(default_factory=dict)
