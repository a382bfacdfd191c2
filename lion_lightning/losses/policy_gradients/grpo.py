"""GRPO and its relatives: advantages relative to the group's mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lion_lightning.losses.base import out_of_range
from lion_lightning.losses.policy_gradients.policy_gradient import PolicyGradientLoss
from lion_lightning.types import AnswerLogps


class GRPOLoss(PolicyGradientLoss):
    r"""Group relative policy optimization (arXiv 2402.03300, eq. 3 and 4).

    .. math:: A_i = \frac{r_i - \text{mean}(r)}{\text{std}(r) + \epsilon}

    with the standard deviation of a sample (n - 1). The loss of a group is the mean over its answers of the means over
    their tokens, as in the paper; the loss of a global step is the mean over its groups.

    Args:
        scale: Whether to divide by the standard deviation.
        eps: Added to the standard deviation.
        **kwargs: Further arguments of :class:`PolicyGradientLoss`.
    """

    def __init__(self, scale: bool = True, eps: float = 1e-4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= eps < float("inf"):
            raise out_of_range(self, "eps", eps, "of at least 0")
        self.scale, self.eps = scale, eps

    @override
    def advantages(self, rewards: Tensor) -> Tensor:
        distances = centered(rewards, self)
        if not self.scale:
            return distances
        variance = distances.square().sum(-1, keepdim=True) / (rewards.shape[-1] - 1)
        # Rewards that are all equal have no spread: an eps of 0 must not make 0 / 0 of them.
        return distances / (variance.sqrt() + self.eps).clamp_min(torch.finfo(variance.dtype).tiny)


class DrGRPOLoss(PolicyGradientLoss):
    r"""Dr. GRPO (arXiv 2503.20783, section 3.2): GRPO without its two biases.

    .. math:: A_i = r_i - \text{mean}(r), \qquad \frac{1}{n L} \sum_i \sum_t (\text{loss of token } t)

    Without the standard deviation, groups that are nearly all right or all wrong do not weigh more than others; with a
    constant L in place of an answer's own length, tokens of long wrong answers do not weigh less than those of short
    ones.

    Args:
        max_tokens: L, at least 1: the sampler's ``max_new_tokens``.
        **kwargs: Further arguments of :class:`PolicyGradientLoss`.
    """

    def __init__(self, max_tokens: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if max_tokens < 1:
            raise out_of_range(self, "max_tokens", max_tokens, "of at least 1, the sampler's max_new_tokens")
        self.max_tokens = max_tokens

    @override
    def advantages(self, rewards: Tensor) -> Tensor:
        return centered(rewards, self)

    @override
    def add_up(self, values: Tensor, policy: AnswerLogps) -> Tensor:
        # The mean over answers is 1 / n; L does not depend on an answer's length.
        return policy.sum(values).mean(-1) / self.max_tokens


class DAPOLoss(GRPOLoss):
    """DAPO (arXiv 2503.14476, eq. 8): GRPO with a higher upper clip, and every token of a global step equal.

    The loss of a global step is the mean over its tokens. Dynamic sampling and the penalty of overlong answers are the
    sampler's and the judge's.

    ``DAPOLoss(beta=0.01, eps=1e-8, clip_high=None)`` is TÜLU 3.1's loss (allenai/open-instruct), whose mean is over the
    tokens of each micro-batch instead.

    Args:
        clip_high: How far above 1 a ratio may lower the loss; None for ``clip_low``.
        **kwargs: Further arguments of :class:`GRPOLoss`.
    """

    def __init__(self, clip_high: float | None = 0.28, **kwargs: Any) -> None:
        super().__init__(clip_high=clip_high, **kwargs)

    @override
    def add_up(self, values: Tensor, policy: AnswerLogps) -> Tensor:
        return policy.sum(values).sum(-1)  # divided by the tokens of the global step, not of the group

    @override
    def num_items(self, policy: AnswerLogps) -> Tensor:
        return policy.counts.sum()


class GSPOLoss(GRPOLoss):
    r"""Group sequence policy optimization (arXiv 2507.18071, eq. 5 to 7): the ratio is the whole answer's.

    .. math:: \rho_i = \left(\frac{\pi(y_i)}{\pi_{old}(y_i)}\right)^{1/|y_i|}

    for each of its tokens, with GRPO's advantages. The root makes ratios of long answers as near to 1 as those of short
    ones, and nearer than those of tokens: so the clip range is small.

    Args:
        clip_low: How far below 1 a ratio may lower the loss; None for no clipping on either side.
        clip_high: How far above 1; None for ``clip_low``.
        **kwargs: Further arguments of :class:`GRPOLoss`.
    """

    def __init__(self, clip_low: float | None = 3e-4, clip_high: float | None = 4e-4, **kwargs: Any) -> None:
        super().__init__(clip_low=clip_low, clip_high=clip_high, **kwargs)

    @override
    def token_log_ratios(self, policy: AnswerLogps, old: AnswerLogps) -> Tensor:
        sums = policy.sum(super().token_log_ratios(policy, old))  # of differences: small, so exact on long answers
        return (sums / policy.counts.clamp_min(1)).reshape(-1)[policy.owners]


def centered(rewards: Tensor, loss: PolicyGradientLoss) -> Tensor:
    """Rewards less the mean of their group, ``(groups, n)``; exactly 0 where they are all equal.

    Args:
        rewards: ``(groups, n)``, n at least 2.
        loss: Whose advantages these are.

    Raises:
        ValueError: Groups have one answer.
    """
    if rewards.shape[-1] < 2:
        raise ValueError(
            f"{type(loss).__name__}: a group has one answer, and nothing to compare it with; give 2 or more"
        )
    differ = rewards.amax(-1, keepdim=True) > rewards.amin(-1, keepdim=True)  # the mean of equal numbers is rounded
    return (rewards - rewards.mean(-1, keepdim=True)) * differ
