"""Penalties on the KL divergence of policy to reference, estimated from the sampled tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor
from typing_extensions import override

from lion_lightning.types import AnswerLogps

LARGEST_LOG_RATIO = 40.0
"""Log-ratios are clamped to this, below and above, where they are exponentiated: no ratio is infinite, and an advantage
of 0 times one is not NaN (TÜLU 3's code clamps its KL estimate the same)."""


class KLPenalty(ABC):
    r"""Estimate of the KL divergence, added to the loss of each token, or taken from the reward of each answer.

    What an estimate is in expectation and what its gradient is are two things. Each class says both, for one sampled
    token behind a given prefix, with :math:`d = \log\pi - \log\pi_{ref}`.

    Attributes:
        in_reward: True if it is taken from the rewards, before advantages are computed; otherwise it is added to the
            loss.
        weighted: True if a token's estimate in the loss is multiplied by its ratio, which is differentiated, too.
    """

    in_reward: bool = False
    weighted: bool = False

    @abstractmethod
    def estimate(self, policy: AnswerLogps, reference: AnswerLogps) -> Tensor:
        """``(targets,)`` estimate for each token, in nats.

        Args:
            policy: Log-probs under the policy: the one in training, or in a reward the one that sampled.
            reference: Log-probs under the reference.
        """


class K1(KLPenalty):
    r"""In the loss: :math:`d` (Schulman, 2020, k1).

    An unbiased estimate whose gradient is zero in expectation on the policy's own answers: it watches the divergence,
    and does not hold it. :class:`K2`, :class:`K3` or :class:`KLInReward` do.
    """

    @override
    def estimate(self, policy: AnswerLogps, reference: AnswerLogps) -> Tensor:
        return policy.tokens.values - reference.tokens.values


class K2(KLPenalty):
    r"""In the loss: :math:`d^2 / 2` (Schulman, 2020, k2).

    A biased estimate whose gradient is that of :math:`\text{KL}(\pi \Vert \pi_{ref})`, token by token: what a token
    does to the divergence of later ones is left out, other than with :class:`KLInReward`.
    """

    @override
    def estimate(self, policy: AnswerLogps, reference: AnswerLogps) -> Tensor:
        return (policy.tokens.values - reference.tokens.values).square() / 2


class K3(KLPenalty):
    r"""In the loss: :math:`e^{-d} - 1 + d` (Schulman, 2020, k3; arXiv 2402.03300, eq. 4).

    An unbiased estimate that is never negative. Its gradient is that of the divergence the other way round,
    :math:`\text{KL}(\pi_{ref} \Vert \pi)`, token by token.

    Args:
        weighted: Whether to multiply by a token's ratio (arXiv 2512.02556; TRL 1.16 does): then the gradient is that of
            :math:`\text{KL}(\pi \Vert \pi_{ref})`, token by token, also on answers of an earlier policy.
    """

    def __init__(self, weighted: bool = False) -> None:
        self.weighted = weighted

    @override
    def estimate(self, policy: AnswerLogps, reference: AnswerLogps) -> Tensor:
        d = (policy.tokens.values - reference.tokens.values).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        return (-d).exp() - 1 + d


class KLInReward(K1):
    r"""In the reward: an answer's summed :math:`d` under the policy that sampled it (arXiv 2402.14740, eq. 2).

    With a loss that adds up the tokens of an answer (:class:`RLOOLoss`, :class:`REINFORCELoss`) its gradient is that of
    the divergence of whole answers; one that divides by their lengths or by a spread weighs it by those.
    """

    in_reward = True
