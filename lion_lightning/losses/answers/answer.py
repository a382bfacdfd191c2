"""Base class of the losses of single answers: log-probs and labels in, a loss per answer out."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor
from typing_extensions import override

from lion_lightning.losses.base import RewardedAnswersLoss
from lion_lightning.types import AnswerLogps


class AnswerLoss(RewardedAnswersLoss):
    r"""A loss per labeled answer. Subclass it and name the subclass in YAML by ``class_path``.

    Args:
        beta: Strength of the pull towards the reference, above 0.

    Attributes:
        needs_reference: True if the loss compares policy and reference.
        needs_mismatched: True if :meth:`observe_mismatched` is to be called before each ``forward``.

    Example:
        A loss of one's own:

        >>> import torch
        >>> class Hinge(AnswerLoss):
        ...     def forward(self, policy, reference, labels):
        ...         signs = torch.where(labels, 1.0, -1.0)
        ...         return (1 - signs * self.rewards(policy, reference)).relu()
        >>> answers = AnswerLogps(TokenLogps(torch.zeros(1)), owners=torch.tensor([0]), counts=torch.ones(1))
        >>> Hinge(beta=0.1)(answers, answers, torch.tensor([True]))
        tensor([1.])
    """

    needs_mismatched: bool = False

    @abstractmethod
    @override
    def forward(self, policy: AnswerLogps, reference: AnswerLogps, labels: Tensor) -> Tensor:
        """Loss of each answer.

        Args:
            policy: Log-probs under the policy, summed and token by token; differentiable.
            reference: Log-probs under the reference; all zero without a reference.
            labels: ``(answers,)`` bool, True for desirable answers.

        Returns:
            ``(answers,)`` losses; the module sums and normalizes them over the global step.
        """

    def observe_mismatched(self, policy: AnswerLogps, reference: AnswerLogps) -> None:
        """Take note of answers that belong to other prompts; called before ``forward`` where ``needs_mismatched``.

        Args:
            policy: Log-probs of the micro-batch's mismatched answers under the policy, without gradient.
            reference: The same under the reference.
        """
