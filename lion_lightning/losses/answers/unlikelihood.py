"""Likelihood of good answers, unlikelihood of bad ones."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lion_lightning.losses.answers.answer import AnswerLoss
from lion_lightning.losses.base import out_of_range
from lion_lightning.types import AnswerLogps


class UnlikelihoodLoss(AnswerLoss):
    r"""Unlikelihood training (arXiv 1908.04319): bad answers are made improbable token by token.

    :math:`-\sum_t \log \pi(y_t)` for desirable answers, :math:`-\alpha \sum_t \log(1 - \pi(y_t))` for others. It has no
    ``beta``: rewards are log-probs.

    Args:
        alpha: Weight of undesirable answers, at least 0.
    """

    needs_reference = False

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(beta=1.0)
        if not 0 <= alpha < float("inf"):
            raise out_of_range(self, "alpha", alpha, "of at least 0")
        self.alpha = alpha

    @override
    def log_ratios(self, policy: AnswerLogps, reference: AnswerLogps) -> Tensor:
        return self.reduce(policy)  # also where another part of the run has a reference

    @override
    def forward(self, policy: AnswerLogps, reference: AnswerLogps, labels: Tensor) -> Tensor:
        logps = policy.tokens.values  # (targets,)
        losses = torch.where(labels[policy.owners], -logps, -self.alpha * log_complement(logps))
        return policy.sum(losses)


def log_complement(logps: Tensor) -> Tensor:
    r"""Log of :math:`1 - p`, exact for p near 1; at the last number below 1 it stops falling, its slope does not.

    A certain token thus still has a gradient, finite, by which it can be unlearned.

    Args:
        logps: Logs of p, at most 0.
    """
    bounded = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    logps = logps + (bounded - logps).detach()  # bounded in value alone
    return (-torch.expm1(logps)).log()
