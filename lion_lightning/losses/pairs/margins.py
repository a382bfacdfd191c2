"""Losses of the margin between the rewards of both sides, other than DPO's own."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import logsigmoid
from typing_extensions import override

from lion_lightning.losses.base import out_of_range
from lion_lightning.losses.pairs.preference import PreferenceLoss
from lion_lightning.types import AnswerLogps, PairLogps


class RobustLoss(PreferenceLoss):
    r"""Robust DPO (arXiv 2403.00409): unbiased where a share of the labels is flipped.

    :math:`((1 - \epsilon) L(m) - \epsilon L(-m)) / (1 - 2 \epsilon)` with :math:`L(m) = -\log \sigma(m)`, whose mean
    over flipped and unflipped labels is :math:`L(m)`. It has no lower bound: a far enough margin makes it negative.

    Args:
        beta: Strength of the pull towards the reference, above 0.
        label_smoothing: :math:`\epsilon`, the share of labels that are wrong, at least 0 and below 0.5.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.1) -> None:
        super().__init__(beta)
        if not 0 <= label_smoothing < 0.5:
            raise out_of_range(self, "label_smoothing", label_smoothing, "of at least 0 and below 0.5")
        self.label_smoothing = label_smoothing

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        margin = self.rewards(policy, reference).margin
        # L(-m) = L(m) + m, which leaves one log-sigmoid.
        return -logsigmoid(margin) - self.label_smoothing / (1 - 2 * self.label_smoothing) * margin


class HingeLoss(PreferenceLoss):
    r"""Hinge of SLiC on normalized rewards: :math:`\max(0, 1 - \beta \Delta)` (RSO, arXiv 2309.06657)."""

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        return (1 - self.rewards(policy, reference).margin).relu()


class IPOLoss(PreferenceLoss):
    r"""IPO: :math:`(h - 1 / 2\beta)^2`, h the margin of the mean log-ratios per token (arXiv 2310.12036, eq. 17).

    The equation is silent on length; the authors confirmed to TRL that the results are those of means per token.

    Args:
        beta: The paper's :math:`\tau`, above 0: the margin aimed at is :math:`1 / 2\beta` nats per token.
    """

    @override
    def reduce(self, answer: AnswerLogps) -> Tensor:
        return answer.means

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        return (self.log_ratios(policy, reference).margin - 0.5 / self.beta) ** 2


class EXOLoss(PreferenceLoss):
    r"""EXO for pairs: :math:`\mathrm{KL}(p \| p_{data})` with :math:`p = (\sigma(\beta\Delta), \sigma(-\beta\Delta))`
    and :math:`p_{data} = (1 - \epsilon, \epsilon)` (arXiv 2402.00856, eq. 16).

    Args:
        beta: Strength of the pull towards the reference, above 0.
        label_smoothing: :math:`\epsilon`, the share of labels taken to be wrong, above 0 and below 0.5.
    """  # noqa: D205

    def __init__(self, beta: float = 0.1, label_smoothing: float = 1e-3) -> None:
        super().__init__(beta)
        if not 0 < label_smoothing < 0.5:
            raise out_of_range(self, "label_smoothing", label_smoothing, "above 0 and below 0.5, such as 0.001")
        self.label_smoothing = label_smoothing

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        margin = self.rewards(policy, reference).margin
        # KL(p || p_data), term by term: p log p - p log p_data.
        right = margin.sigmoid() * (logsigmoid(margin) - math.log1p(-self.label_smoothing))
        wrong = (-margin).sigmoid() * (logsigmoid(-margin) - math.log(self.label_smoothing))
        return right + wrong


class DiscoPOPLoss(PreferenceLoss):
    r"""DiscoPOP, found by search: a blend of logistic and exponential loss (arXiv 2406.08414, eq. 5).

    :math:`(1 - w)(-\log \sigma(m)) + w e^{-m}` with :math:`m = \beta \Delta` and :math:`w = \sigma(m / \tau)`.

    Args:
        beta: Strength of the pull towards the reference, above 0.
        tau: Width of the crossing from one loss to the other, above 0.
    """

    def __init__(self, beta: float = 0.05, tau: float = 0.05) -> None:
        super().__init__(beta)
        if not 0 < tau < float("inf"):
            raise out_of_range(self, "tau", tau, "above 0")
        self.tau = tau

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        margin = self.rewards(policy, reference).margin
        logistic = -(-margin / self.tau).sigmoid() * logsigmoid(margin)
        # One exponent: e^-m alone overflows where its weight vanishes.
        return logistic + (logsigmoid(margin / self.tau) - margin).exp()
