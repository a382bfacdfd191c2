"""Penalties on the KL divergence of policy to reference, estimated from the sampled tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor
from typing_extensions import override

from lion_lightning.types import AnswerLogps

LARGEST_LOG_RATIO = 40.0
"""Log-ratios are clamped to this, below and above, where they are exponentiated (TÜLU 3's code does the same)."""


class KLPenalty(ABC):
    """Estimate of the KL divergence, added to the loss of each token, or taken from the reward of each answer.

    Attributes:
        in_reward: Whether it is taken from the rewards, before advantages are computed, instead of added to the loss.
    """

    in_reward: bool = False

    @abstractmethod
    def estimate(self, policy: AnswerLogps, reference: AnswerLogps) -> Tensor:
        """``(targets,)`` estimate for each token, in nats.

        Args:
            policy: Log-probs under the policy: the one in training, or in a reward the one that sampled.
            reference: Log-probs under the reference.
        """


class K1(KLPenalty):
    r"""In the loss: :math:`\log\pi - \log\pi_{ref}` of each sampled token (Schulman, 2020, k1).

    An unbiased estimate whose gradient is zero in expectation on the policy's own answers: it watches the divergence,
    and does not hold it. :class:`K3` or :class:`KLInReward` do.
    """

    @override
    def estimate(self, policy: AnswerLogps, reference: AnswerLogps) -> Tensor:
        return policy.tokens.values - reference.tokens.values


class K3(KLPenalty):
    r"""In the loss: :math:`e^{-d} - 1 + d` with :math:`d = \log\pi - \log\pi_{ref}` (Schulman, 2020, k3; GRPO's)."""

    @override
    def estimate(self, policy: AnswerLogps, reference: AnswerLogps) -> Tensor:
        d = (policy.tokens.values - reference.tokens.values).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        return (-d).exp() - 1 + d


class KLInReward(K1):
    """In the reward: an answer's summed k1 under the policy that sampled it. Its gradient is the divergence's."""

    in_reward = True
