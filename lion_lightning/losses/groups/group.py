"""Base class of the losses of groups: log-probs and values of a prompt's answers in, a loss per prompt out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lion_lightning.losses.base import RewardedAnswersLoss
from lion_lightning.types import AnswerLogps


class GroupLoss(RewardedAnswersLoss):
    r"""A loss per prompt, over all of its answers. Subclass it and name the subclass in YAML by ``class_path``.

    Groups of equal size come together, so that nothing is masked; a micro-batch of several sizes makes a call for each.

    Args:
        beta: Strength of the pull towards the reference, above 0.

    Attributes:
        needs_reference: True if the loss compares policy and reference.
        on_policy: True if the answers have to be the policy's own, sampled by it.
        learns_from_equal: True if something is learned from groups whose values are all equal.

    Example:
        A loss of one's own, which makes the probabilities of a group follow its values:

        >>> import torch
        >>> class Softmax(GroupLoss):
        ...     def forward(self, policy, reference, values):
        ...         return -(values.softmax(-1) * self.rewards(policy, reference).log_softmax(-1)).sum(-1)
        >>> two = AnswerLogps(TokenLogps(torch.zeros(2)), owners=torch.tensor([0, 1]), counts=torch.ones(1, 2))
        >>> Softmax(beta=0.1)(two, two, torch.tensor([[1.0, 0.0]]))
        tensor([0.6931])
    """

    on_policy: ClassVar[bool] = False
    learns_from_equal: ClassVar[bool] = False

    def check_values(self, values: Sequence[float]) -> None:
        """Refuse values that the loss is not for, with a ``ValueError``; called with those of each batch.

        Args:
            values: Of all answers of the batch, plain numbers, so that nothing waits for the device.
        """

    @abstractmethod
    @override
    def forward(self, policy: AnswerLogps, reference: AnswerLogps, values: Tensor) -> Tensor:
        """Loss of each group.

        Args:
            policy: Log-probs under the policy, summed ``(groups, n)`` and token by token; differentiable.
            reference: Log-probs under the reference; all zero without a reference.
            values: ``(groups, n)`` fp32 scores, rewards or advantages.

        Returns:
            ``(groups,)`` losses; the module sums them over the global step and divides by its :meth:`num_items`.
        """

    def num_items(self, policy: AnswerLogps) -> Tensor:
        """Number that the loss of a global step is divided by: here groups, so that every prompt weighs alike.

        Args:
            policy: The answers of a micro-batch, ``(groups, n)``.
        """
        return torch.full((), len(policy.counts), device=policy.counts.device)


def differences(numbers: Tensor) -> Tensor:
    """``(groups, n, n)`` number i minus number j of each group, of ``(groups, n)`` numbers."""
    return numbers[:, :, None] - numbers[:, None, :]
