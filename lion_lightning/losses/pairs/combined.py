"""Losses made of other losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from lion_lightning.losses.base import out_of_range
from lion_lightning.losses.pairs.dpo import SigmoidLoss
from lion_lightning.losses.pairs.preference import Pair, PreferenceLoss
from lion_lightning.types import AnswerLogps, PairLogps


class _Around(PreferenceLoss):
    """A loss made of others: rewards are those of the first, and each one is told of optimizer steps."""

    def __init__(self, parts: list[PreferenceLoss]) -> None:
        super().__init__(parts[0].beta)
        self.parts = nn.ModuleList(parts)
        self.needs_reference = any(part.needs_reference for part in parts)

    @property
    def _losses(self) -> list[PreferenceLoss]:
        return cast("list[PreferenceLoss]", list(self.parts))

    @override
    def reduce(self, answer: AnswerLogps) -> Tensor:
        return self._losses[0].reduce(answer)

    @override
    def log_ratios(self, policy: PairLogps, reference: PairLogps) -> Pair:
        return self._losses[0].log_ratios(policy, reference)

    @override
    def rewards(self, policy: PairLogps, reference: PairLogps) -> Pair:
        return self._losses[0].rewards(policy, reference)

    @override
    def after_step(self, add_up: Callable[[Tensor], Tensor]) -> None:
        for loss in self._losses:
            loss.after_step(add_up)


class WeightedSum(_Around):
    """A weighted sum of losses, each as it is alone, with its own beta and reduction. Rewards are those of the first.

    MPO (arXiv 2411.10442) is the sum of ``SigmoidLoss``, ``BCOPairLoss`` and ``ChosenNLLLoss`` by 0.8, 0.2 and 1.

    Args:
        losses: What is added up, at least one.
        weights: Weight of each, at least 0; None for 1 each.

    Raises:
        ValueError: If there are no losses, not as many weights as losses, or a weight is negative or not finite.
    """

    def __init__(self, losses: list[PreferenceLoss], weights: list[float] | None = None) -> None:
        if not losses:
            raise ValueError("WeightedSum: losses is empty; name at least one")
        super().__init__(losses)
        self.weights = [1.0] * len(losses) if weights is None else weights
        if len(self.weights) != len(losses):
            raise ValueError(f"WeightedSum: {len(losses)} losses but {len(self.weights)} weights; give one for each")
        for number, weight in enumerate(self.weights):
            if not 0 <= weight < float("inf"):
                raise out_of_range(self, f"weights[{number}]", weight, "of at least 0")

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        terms = []
        for weight, loss in zip(self.weights, self._losses, strict=True):
            terms.append(weight * loss(policy, reference))  # (pairs,)
        return torch.stack(terms).sum(0)


class WPOLoss(_Around):
    r"""WPO (arXiv 2406.11827, eq. 2): each pair's loss times how likely both answers are to be the policy's own.

    .. math:: w = w_w w_l, \qquad w_i = \exp \frac{1}{|y_i|} \sum_t (\log \pi(y_{i,t}) - \log \sum_v \pi(v)^2)

    A token weighs 1 when it is as likely as tokens that the policy would draw there (the paper's sampled alignment). No
    gradient flows through the weight. It is not clamped, here as in the paper's equation and in TRL: answers of more
    than usual likelihood weigh above 1.

    Args:
        loss: What is weighted; None for :class:`~lion_lightning.losses.pairs.dpo.SigmoidLoss`.
    """

    def __init__(self, loss: PreferenceLoss | None = None) -> None:
        super().__init__([loss or SigmoidLoss()])

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        losses: Tensor = self._losses[0](policy, reference)
        for side in policy:  # w_w, then w_l
            drawn = side.tokens.log_collision_prob  # (targets,) log sum_v pi(v)^2
            assert drawn is not None, "a policy's forward gives it"
            losses = losses * (side.means - side.sum(drawn) / side.counts.clamp_min(1.0)).detach().exp()
        return losses
