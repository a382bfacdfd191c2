"""Bases of the losses of answers, pairs and groups."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from lion_lightning.types import AnswerLogps


class AlignmentLoss(nn.Module, ABC):
    """Base of the losses that judge answers, mostly against a reference: subclass one of its subclasses.

    How an answer's tokens become one number is said once, in :meth:`reduce`, and holds for policy, reference and logged
    rewards alike.

    Args:
        beta: Strength of the pull towards the reference, above 0.

    Attributes:
        needs_reference: True if the loss compares policy and reference.
        zero_beta: True if ``beta`` may be 0.
    """

    needs_reference: bool = True
    zero_beta: ClassVar[bool] = False

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        if not (0 < beta < float("inf") or (self.zero_beta and beta == 0)):
            raise out_of_range(self, "beta", beta, "of at least 0" if self.zero_beta else "above 0")
        self.beta = beta

    def reduce(self, answer: AnswerLogps) -> Tensor:
        """One number per answer: its summed log-prob, unless a loss overrides this."""
        return answer.sums

    def after_step(self, add_up: Callable[[Tensor], Tensor]) -> None:
        """Update what the loss tracks over the run, such as a running mean; called after every optimizer step.

        Args:
            add_up: Sums a tensor over all ranks.
        """


class RewardedAnswersLoss(AlignmentLoss):
    """Base of the losses with a reward per answer: those of single answers and of groups."""

    def log_ratios(self, policy: AnswerLogps, reference: AnswerLogps) -> Tensor:
        r""":math:`\log \pi(y|x) - \log \pi_{ref}(y|x)`, reduced, in the shape of the answers."""
        return self.reduce(policy) - self.reduce(reference)

    def rewards(self, policy: AnswerLogps, reference: AnswerLogps) -> Tensor:
        """Implicit rewards: ``beta`` times the log-ratios (arXiv 2305.18290). The module logs them."""
        return self.beta * self.log_ratios(policy, reference)


def out_of_range(owner: object, name: str, value: float, rule: str) -> ValueError:
    """The complaint to raise about an argument."""
    return ValueError(f"{type(owner).__name__}: {name} is {value}; give a number {rule}")
