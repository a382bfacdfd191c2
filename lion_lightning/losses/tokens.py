"""Losses of supervised fine-tuning: from the log-probs of the targets to a loss per token."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from typing_extensions import override


class TokenLoss(nn.Module, ABC):
    """A loss per supervised token. Subclass it and name the subclass in YAML by ``class_path``.

    Example:
        >>> import torch
        >>> class Focal(TokenLoss):
        ...     def forward(self, logps):
        ...         return -(1 - logps.exp()) ** 2 * logps
        >>> Focal()(torch.tensor([0.0]))
        tensor([-0.])
    """

    @abstractmethod
    @override
    def forward(self, logps: Tensor) -> Tensor:
        """Loss of each target.

        Args:
            logps: ``(targets,)`` fp32 log-probs of the supervised tokens.

        Returns:
            ``(targets,)`` losses; the module sums and normalizes them over the global step.
        """


class NLLLoss(TokenLoss):
    r"""Negative log-likelihood :math:`-\log \pi(y_t \mid y_{<t})`."""

    @override
    def forward(self, logps: Tensor) -> Tensor:
        return -logps


class DFTLoss(TokenLoss):
    r"""Dynamic fine-tuning :math:`-\mathrm{sg}[\pi(y_t)] \log \pi(y_t)` (arXiv 2508.05629, eq. 9).

    Read as a policy gradient, plain likelihood rewards a token by the inverse of its probability; the detached factor
    takes that weight away, so that improbable tokens do not dominate.
    """

    @override
    def forward(self, logps: Tensor) -> Tensor:
        return -logps.detach().exp() * logps
