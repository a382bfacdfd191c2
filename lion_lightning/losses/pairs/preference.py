"""Base class of preference losses: log-probs of pairs under policy and reference in, a loss per pair out."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from torch import Tensor
from typing_extensions import override

from lion_lightning.losses.base import AlignmentLoss
from lion_lightning.types import PairLogps


class Pair(NamedTuple):
    """A number for each side of each pair.

    Attributes:
        chosen: ``(pairs,)`` of the preferred answers.
        rejected: ``(pairs,)`` of the others.
    """

    chosen: Tensor
    rejected: Tensor

    @property
    def margin(self) -> Tensor:
        """``(pairs,)`` chosen minus rejected."""
        return self.chosen - self.rejected


class PreferenceLoss(AlignmentLoss):
    r"""A loss per preference pair. Subclass it and name the subclass in YAML by ``class_path``.

    Args:
        beta: Strength of the pull towards the reference, above 0.

    Attributes:
        needs_reference: True if the loss compares policy and reference.

    Example:
        A loss of one's own:

        >>> import torch
        >>> class Squared(PreferenceLoss):
        ...     def forward(self, policy, reference):
        ...         return (1 - self.rewards(policy, reference).margin) ** 2
        >>> answers = AnswerLogps(TokenLogps(torch.zeros(1)), owners=torch.tensor([0]), counts=torch.ones(1))
        >>> same = PairLogps(answers, answers)
        >>> Squared(beta=0.1)(same, same)
        tensor([1.])
    """

    @abstractmethod
    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        """Loss of each pair.

        Args:
            policy: Log-probs under the policy, summed and token by token; differentiable.
            reference: Log-probs under the reference; all zero without a reference.

        Returns:
            ``(pairs,)`` losses; the module sums and normalizes them over the global step.
        """

    def log_ratios(self, policy: PairLogps, reference: PairLogps) -> Pair:
        r""":math:`\log \pi(y|x) - \log \pi_{ref}(y|x)` of both sides, reduced."""
        chosen = self.reduce(policy.chosen) - self.reduce(reference.chosen)  # (pairs,)
        return Pair(chosen, self.reduce(policy.rejected) - self.reduce(reference.rejected))

    def rewards(self, policy: PairLogps, reference: PairLogps) -> Pair:
        """Implicit rewards: ``beta`` times the log-ratios (arXiv 2305.18290). The module logs them."""
        ratios = self.log_ratios(policy, reference)
        return Pair(self.beta * ratios.chosen, self.beta * ratios.rejected)
