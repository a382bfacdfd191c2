"""Base class of the policy gradients."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lion_lightning.losses.base import out_of_range
from lion_lightning.losses.groups.group import GroupLoss
from lion_lightning.losses.policy_gradients.kl import K3, LARGEST_LOG_RATIO, KLPenalty
from lion_lightning.types import AnswerLogps, SumOver


class PolicyGradientLoss(GroupLoss):
    r"""Raises the probability of answers that do better than others to the same prompt.

    .. math::
        -\min(\rho_t A_i,\; \text{clip}(\rho_t, 1 - \epsilon_{low}, 1 + \epsilon_{high})\, A_i) + \beta\, \text{KL}_t,
        \qquad \rho_t = \frac{\pi(y_t)}{\pi_{old}(y_t)}

    for token t of answer i, added up over the tokens of a group. ``old`` is the policy that sampled the answers. For
    the first optimizer step on them it is the policy itself: the ratio is 1, and only its gradient counts.

    A subclass says what an answer's advantage is (:meth:`advantages`). It may override what the ratio is of
    (:meth:`token_log_ratios`), the loss of a token (:meth:`surrogate`), how tokens are added up (:meth:`add_up`) and
    what a global step is divided by (:meth:`num_items`).

    Args:
        beta: Weight of the KL penalty, 0 or more; 0 needs no reference.
        kl: How the divergence is estimated and where it goes; None for :class:`K3`, in the loss.
        clip_low: How far below 1 a ratio may lower the loss; None for no clipping on either side.
        clip_high: How far above 1; None for ``clip_low``.

    Raises:
        ValueError: A number is out of range.
    """

    zero_beta = True
    on_policy = True

    def __init__(
        self,
        beta: float = 0.0,
        kl: KLPenalty | None = None,
        clip_low: float | None = 0.2,
        clip_high: float | None = None,
    ) -> None:
        super().__init__(beta)
        self.needs_reference = beta > 0
        self.kl = kl or K3()
        if clip_low is None and clip_high is not None:
            raise out_of_range(self, "clip_high", clip_high, "together with clip_low, or null for both")
        if clip_low is not None and not 0 < clip_low <= 1:
            raise out_of_range(self, "clip_low", clip_low, "above 0 and at most 1, or null for no clipping")
        if clip_high is not None and not 0 < clip_high < math.inf:
            raise out_of_range(self, "clip_high", clip_high, "above 0, or null for clip_low")
        self.clip_low, self.clip_high = clip_low, clip_low if clip_high is None else clip_high

    @abstractmethod
    def advantages(self, rewards: Tensor) -> Tensor:
        """``(groups, n)`` advantage of each answer.

        Args:
            rewards: ``(groups, n)`` rewards, after any penalty.
        """

    def token_log_ratios(self, policy: AnswerLogps, old: AnswerLogps) -> Tensor:
        r"""``(targets,)`` :math:`\log\rho` of each token: here of the token alone."""
        return policy.tokens.values - old.tokens.values

    def surrogate(self, ratios: Tensor, advantages: Tensor, policy: AnswerLogps) -> Tensor:
        """``(targets,)`` loss of each token, without the penalty.

        Args:
            ratios: ``(targets,)``, differentiable.
            advantages: ``(targets,)``.
            policy: Log-probs under the policy, for losses that are not of the ratio.
        """
        return -torch.minimum(ratios * advantages, self.clip(ratios) * advantages)

    def add_up(self, values: Tensor, policy: AnswerLogps) -> Tensor:
        """``(groups,)`` loss of each group: here the mean over its answers of the means over their tokens.

        Args:
            values: ``(targets,)`` loss of each token.
            policy: The answers, ``(groups, n)``.
        """
        return (policy.sum(values) / policy.counts.clamp_min(1)).mean(-1)

    @override
    def check_values(self, values: Sequence[float]) -> None:
        """Refuse a reward that is not finite: every advantage of its group would be NaN."""
        wrong = next((value for value in values if not math.isfinite(value)), None)
        if wrong is not None:
            raise ValueError(f"{type(self).__name__}: a reward is {wrong}; have the judge give finite numbers")

    @override
    def forward(
        self, policy: AnswerLogps, reference: AnswerLogps, values: Tensor, old: AnswerLogps | None = None
    ) -> Tensor:
        """Loss of each group.

        Args:
            policy: Log-probs under the policy, ``(groups, n)`` and token by token; differentiable.
            reference: Log-probs under the reference; all zero without one.
            values: ``(groups, n)`` fp32 rewards.
            old: Log-probs under the policy that sampled the answers; None for the policy as it is now.

        Returns:
            ``(groups,)`` losses, which are to be divided by :meth:`num_items` of the global step.
        """
        ratios, advantages = self.terms(policy, reference, values, old)
        losses = self.surrogate(ratios, advantages, policy)
        if self.beta and not self.kl.in_reward:
            divergences = self.kl.estimate(policy, reference)  # (targets,)
            losses = losses + self.beta * (ratios * divergences if self.kl.weighted else divergences)
        return self.add_up(losses, policy)

    def terms(
        self, policy: AnswerLogps, reference: AnswerLogps, values: Tensor, old: AnswerLogps | None
    ) -> tuple[Tensor, Tensor]:
        """Ratio and advantage of each token, ``(targets,)`` each; arguments as in :meth:`forward`."""
        old = old or policy.detach()  # the ratio is 1, and its gradient that of the log-prob
        advantages = self.advantages(self.penalized(values, reference, old))
        if advantages.shape != values.shape:
            raise ValueError(
                f"{type(self).__name__}.advantages gave a tensor of shape {tuple(advantages.shape)} for rewards of "
                f"shape {tuple(values.shape)}; return one for each answer"
            )
        ratios = self.token_log_ratios(policy, old).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
        return ratios, advantages.reshape(-1)[policy.owners]  # each token has the advantage of its answer

    def penalized(self, rewards: Tensor, reference: AnswerLogps, old: AnswerLogps) -> Tensor:
        """``(groups, n)`` rewards, less ``beta`` times the divergence where it goes there."""
        if not (self.beta and self.kl.in_reward):
            return rewards
        # Of the policy that sampled: a reward is a number, and has no gradient.
        return rewards - self.beta * old.sum(self.kl.estimate(old, reference))

    def clip(self, ratios: Tensor) -> Tensor:
        """Ratios within the range in which they may lower the loss."""
        if self.clip_low is None or self.clip_high is None:
            return ratios
        return ratios.clamp(1 - self.clip_low, 1 + self.clip_high)

    @torch.no_grad()
    def metrics(
        self, policy: AnswerLogps, reference: AnswerLogps, values: Tensor, old: AnswerLogps | None = None
    ) -> dict[str, SumOver]:
        """Sums over tokens of what is logged, see :class:`~lion_lightning.modules.PolicyGradientModule`."""
        ratios, advantages = self.terms(policy, reference, values, old)
        clipped, number = self.clip(ratios), policy.counts.sum()
        # Only where the clipped term is the smaller one: elsewhere the gradient is that of the ratio.
        metrics = {
            "ratio": SumOver(ratios.sum(), number),
            "clip/low": SumOver(((ratios < clipped) & (advantages < 0)).sum(), number),
            "clip/high": SumOver(((ratios > clipped) & (advantages > 0)).sum(), number),
        }
        if policy.tokens.entropy is not None:
            metrics["entropy"] = SumOver(policy.tokens.entropy.sum(), number)
        return metrics
