"""Alignment by optimal transport: distributions are compared over a micro-batch, not answers within a pair."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from lion_lightning.losses.pairs.dpo import LogisticLoss
from lion_lightning.types import PairLogps


class AOTLoss(LogisticLoss):
    r"""Paired AOT (arXiv 2406.05882): the policy's margins, sorted, above the reference's, sorted.

    :math:`z_i = \beta (\mathrm{sort}(\log \pi(y_w) - \log \pi(y_l))_i - \mathrm{sort}(\log \pi_{ref}(y_w) -
    \log \pi_{ref}(y_l))_i)`. Sorting is over the pairs of the micro-batch: unlike other losses this one depends on how
    a step is split, wants many pairs per row, and is DPO for one.

    Args:
        beta: Strength of the pull towards the reference, above 0. The paper takes 0.01.
        label_smoothing: Share of labels taken to be wrong, at least 0 and below 0.5.
    """

    @override
    def logits(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        own = self.reduce(policy.chosen) - self.reduce(policy.rejected)  # (pairs,) margins
        other = self.reduce(reference.chosen) - self.reduce(reference.rejected)
        return self.beta * (own.sort().values - other.sort().values)


class AOTUnpairedLoss(LogisticLoss):
    r"""Unpaired AOT (arXiv 2406.05882): the rewards of chosen answers, sorted, above those of rejected ones, sorted.

    :math:`z_i = \mathrm{sort}(r_w)_i - \mathrm{sort}(r_l)_i`, over the pairs of the micro-batch, with all that
    :class:`AOTLoss` says of that.

    Args:
        beta: Strength of the pull towards the reference, above 0. The paper takes 0.01.
        label_smoothing: Share of labels taken to be wrong, at least 0 and below 0.5.
    """

    @override
    def logits(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        chosen, rejected = self.rewards(policy, reference)
        return chosen.sort().values - rejected.sort().values
