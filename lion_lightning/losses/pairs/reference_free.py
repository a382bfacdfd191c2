"""Losses that compare the policy with nothing but itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from typing_extensions import override

from lion_lightning.losses.base import out_of_range
from lion_lightning.losses.pairs.preference import Pair, PreferenceLoss
from lion_lightning.types import AnswerLogps, PairLogps


class ReferenceFreeLoss(PreferenceLoss):
    """Base of the losses that need no reference, and do not look at one that another part of the run needs.

    Rewards are ``beta`` times the policy's own log-probs.
    """

    needs_reference = False

    @override
    def log_ratios(self, policy: PairLogps, reference: PairLogps) -> Pair:
        return Pair(*map(self.reduce, policy))


class ChosenNLLLoss(ReferenceFreeLoss):
    r"""The SFT term: negative log-likelihood of the chosen answer, the mean over its tokens.

    A part of :class:`~lion_lightning.losses.pairs.combined.WeightedSum`: with DPO it makes the loss of iterative RPO
    (arXiv 2404.19733) and of RPO (arXiv 2405.16436), with DPO and BCO that of MPO (arXiv 2411.10442). Every pair
    weighs the same, whatever its length. It has no ``beta``: rewards are mean log-probs.
    """

    def __init__(self) -> None:
        super().__init__(beta=1.0)

    @override
    def reduce(self, answer: AnswerLogps) -> Tensor:
        return answer.means

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        return -policy.chosen.means


class SimPOLoss(ReferenceFreeLoss):
    r"""SimPO: :math:`-\log \sigma(\beta (\bar\ell_w - \bar\ell_l) - \gamma)`, with :math:`\bar\ell` the mean log-prob
    per token (arXiv 2405.14734).

    Args:
        beta: Scale of the rewards, above 0. The paper takes 2 to 10.
        gamma: Margin that the rewards should have, at least 0. The paper takes 0.3 to 1.6 (TRL's ``simpo_gamma``).
    """  # noqa: D205

    def __init__(self, beta: float = 2.0, gamma: float = 1.0) -> None:
        super().__init__(beta)
        if not 0 <= gamma < float("inf"):
            raise out_of_range(self, "gamma", gamma, "of at least 0")
        self.gamma = gamma

    @override
    def reduce(self, answer: AnswerLogps) -> Tensor:
        return answer.means

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        return -logsigmoid(self.rewards(policy, reference).margin - self.gamma)


class CPOLoss(ReferenceFreeLoss):
    r"""CPO: :math:`-\log \sigma(\beta (\log \pi(y_w|x) - \log \pi(y_l|x))) + \alpha \mathrm{NLL}(y_w)`
    (arXiv 2401.08417, and the behaviour-cloning term after it).

    Args:
        beta: Scale of the rewards, above 0.
        alpha: Weight of the chosen answer's negative log-likelihood per token, at least 0 (TRL's ``cpo_alpha``).
    """  # noqa: D205

    def __init__(self, beta: float = 0.1, alpha: float = 1.0) -> None:
        super().__init__(beta)
        if not 0 <= alpha < float("inf"):
            raise out_of_range(self, "alpha", alpha, "of at least 0")
        self.alpha = alpha

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        return -logsigmoid(self.rewards(policy, reference).margin) - self.alpha * policy.chosen.means


class ORPOLoss(ReferenceFreeLoss):
    r"""ORPO: :math:`\mathrm{NLL}(y_w) - \lambda \log \sigma(\log \mathrm{odds}_w - \log \mathrm{odds}_l)`, the odds
    :math:`p / (1 - p)` of the mean log-prob per token (arXiv 2403.07691).

    Args:
        beta: :math:`\lambda`, weight of the odds ratio, above 0.
    """  # noqa: D205

    @override
    def reduce(self, answer: AnswerLogps) -> Tensor:
        return answer.means

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        ratio = log_odds(policy.chosen.means) - log_odds(policy.rejected.means)
        return -policy.chosen.means - self.beta * logsigmoid(ratio)


def log_odds(logps: Tensor) -> Tensor:
    r"""Log of :math:`p / (1 - p)`, exact for p near 1, where the odds stop growing at the last number below 1.

    Args:
        logps: Logs of p, at most 0.
    """
    logps = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    return logps - (-torch.expm1(logps)).log()
