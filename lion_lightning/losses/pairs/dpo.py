"""DPO and what differs from it by a term: losses of the logistic form."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from typing_extensions import override

from lion_lightning.losses.base import out_of_range
from lion_lightning.losses.pairs.divergences import Divergence, ReverseKL
from lion_lightning.losses.pairs.preference import Pair, PreferenceLoss
from lion_lightning.types import AnswerLogps, PairLogps


class LogisticLoss(PreferenceLoss):
    r"""Base of the losses :math:`-(1-\epsilon)\log\sigma(z) - \epsilon\log\sigma(-z)`; a subclass says what z is.

    With :math:`\epsilon > 0`, labels are taken to be wrong that often: conservative DPO (ericmitchell.ai/cdpo.pdf).

    Args:
        beta: Strength of the pull towards the reference, above 0.
        label_smoothing: :math:`\epsilon`, at least 0 and below 0.5.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__(beta)
        if not 0 <= label_smoothing < 0.5:
            raise out_of_range(self, "label_smoothing", label_smoothing, "of at least 0 and below 0.5")
        self.label_smoothing = label_smoothing

    @abstractmethod
    def logits(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        """``(pairs,)`` log-odds that the chosen answer is the better one."""

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        logits = self.logits(policy, reference)  # (pairs,) z
        return -(1 - self.label_smoothing) * logsigmoid(logits) - self.label_smoothing * logsigmoid(-logits)


class SigmoidLoss(LogisticLoss):
    r"""DPO: :math:`z = \beta(\rho_w - \rho_l)`, :math:`\rho` the log-ratios to the reference (arXiv 2305.18290, eq. 7).

    With a divergence it is f-DPO (arXiv 2309.16240): :math:`f'(e^\rho)` stands for each log-ratio :math:`\rho`.

    Args:
        beta: Strength of the pull towards the reference, above 0.
        label_smoothing: Share of labels taken to be wrong, at least 0 and below 0.5.
        divergence: What holds the policy to the reference; None for reverse KL.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0, divergence: Divergence | None = None) -> None:
        super().__init__(beta, label_smoothing)
        self.divergence = divergence or ReverseKL()

    @override
    def rewards(self, policy: PairLogps, reference: PairLogps) -> Pair:
        """``beta`` times the divergence's derivative at the ratios."""
        ratios = self.log_ratios(policy, reference)
        chosen, rejected = map(self.divergence.derivative, ratios)
        return Pair(self.beta * chosen, self.beta * rejected)

    @override
    def logits(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        return self.rewards(policy, reference).margin


class SigmoidNormLoss(SigmoidLoss):
    r"""DPO on log-ratios per token: :math:`z = \beta(\rho_w/|y_w| - \rho_l/|y_l|)` (TÜLU 3, arXiv 2411.15124).

    Args:
        beta: Strength of the pull towards the reference, above 0; larger than in DPO, for log-ratios per token.
        label_smoothing: Probability that a label is wrong, at least 0 and below 0.5.
        divergence: What holds the policy to the reference; None for reverse KL.
    """

    def __init__(self, beta: float = 5.0, label_smoothing: float = 0.0, divergence: Divergence | None = None) -> None:
        super().__init__(beta, label_smoothing, divergence)

    @override
    def reduce(self, answer: AnswerLogps) -> Tensor:
        return answer.means


class LDDPOLoss(SigmoidLoss):
    r"""LD-DPO (arXiv 2409.06411): what an answer says beyond the length of the shorter one counts :math:`\alpha`.

    :math:`\log\pi(y) \to \sum_{t \le l} \log\pi(y_t) + \alpha\sum_{t > l} \log\pi(y_t)`, with
    :math:`l = \min(|y_w|, |y_l|)`, for policy and reference alike; then DPO.

    Args:
        beta: Strength of the pull towards the reference, above 0.
        alpha: At least 0 and at most 1; 1 is DPO.
        label_smoothing: Probability that a label is wrong, at least 0 and below 0.5.
        divergence: What holds the policy to the reference; None for reverse KL.
    """

    def __init__(
        self,
        beta: float = 0.1,
        alpha: float = 0.5,
        label_smoothing: float = 0.0,
        divergence: Divergence | None = None,
    ) -> None:
        super().__init__(beta, label_smoothing, divergence)
        if not 0 <= alpha <= 1:
            raise out_of_range(self, "alpha", alpha, "from 0 to 1")
        self.alpha = alpha

    @override
    def log_ratios(self, policy: PairLogps, reference: PairLogps) -> Pair:
        shorter = torch.minimum(policy.chosen.counts, policy.rejected.counts)  # (pairs,) l
        ratios = []
        for own, other in zip(policy, reference, strict=True):
            shared, base = own.first(shorter), other.first(shorter)  # sums over t <= l
            tails = (own.sums - shared, other.sums - base)
            ratios.append((shared + self.alpha * tails[0]) - (base + self.alpha * tails[1]))
        return Pair(*ratios)


class DPOPLoss(LogisticLoss):
    r"""DPO-positive (Smaug, arXiv 2402.13228): the chosen answer may not become less probable than it was.

    :math:`z = \beta(\rho_w - \rho_l - \lambda\max(0, -\rho_w))`

    Args:
        beta: Strength of the pull towards the reference, above 0.
        penalty: :math:`\lambda`, at least 0; 0 is DPO. The paper has 50 with a beta of 0.3.
        label_smoothing: Share of labels taken to be wrong, at least 0 and below 0.5.
    """

    def __init__(self, beta: float = 0.3, penalty: float = 50.0, label_smoothing: float = 0.0) -> None:
        super().__init__(beta, label_smoothing)
        if not 0 <= penalty < float("inf"):
            raise out_of_range(self, "penalty", penalty, "of at least 0")
        self.penalty = penalty

    @override
    def logits(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        ratios = self.log_ratios(policy, reference)  # rho
        return self.beta * (ratios.margin - self.penalty * (-ratios.chosen).relu())


class RDPOLoss(LogisticLoss):
    r"""R-DPO (arXiv 2403.19159): :math:`z = \beta(\rho_w - \rho_l) + \alpha(|y_w| - |y_l|)`.

    Maximising :math:`r(x, y) - \alpha|y| - \beta\mathrm{KL}` makes :math:`r = \beta\rho + \alpha|y| + c(x)`, hence the
    sign: a longer chosen answer is preferred for its length in part, and less is left to learn.

    Args:
        beta: Strength of the pull towards the reference, above 0.
        alpha: Penalty per token, at least 0; 0 is DPO.
        label_smoothing: Share of labels taken to be wrong, at least 0 and below 0.5.
    """

    def __init__(self, beta: float = 0.1, alpha: float = 0.01, label_smoothing: float = 0.0) -> None:
        super().__init__(beta, label_smoothing)
        if not 0 <= alpha < float("inf"):
            raise out_of_range(self, "alpha", alpha, "of at least 0")
        self.alpha = alpha

    @override
    def logits(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        longer = policy.chosen.counts - policy.rejected.counts  # |y_w| - |y_l|, in tokens
        return self.rewards(policy, reference).margin + self.alpha * longer
