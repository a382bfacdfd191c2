"""GRPO and its relatives: advantages relative to the group's mean."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import override

from lion_lightning.losses.base import out_of_range
from lion_lightning.losses.policy_gradients.policy_gradient import PolicyGradientLoss
from lion_lightning.types import AnswerLogps


class GRPOLoss(PolicyGradientLoss):
    r"""Group relative policy optimization (arXiv 2402.03300, eq. 3 and 4).

    .. math:: A_i = \frac{r_i - \text{mean}(r)}{\text{std}(r) + \epsilon}

    with the standard deviation of a sample (n - 1). The loss of a group is the mean over its answers of the means over
    their tokens.

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
        centered = rewards - rewards.mean(-1, keepdim=True)
        # Rounding must not become a signal: rewards that are all equal have a mean that may differ from them.
        centered = centered * (rewards.amax(-1, keepdim=True) > rewards.amin(-1, keepdim=True))
        if not self.scale:
            return centered
        variance = centered.square().sum(-1, keepdim=True) / (rewards.shape[-1] - 1)  # of a sample
        return centered / (variance.sqrt() + self.eps)


class DAPOLoss(GRPOLoss):
    """DAPO's loss (arXiv 2503.14476, eq. 8): GRPO's with a higher upper clip, and every token of a global step equal.

    Args:
        clip_high: How far above 1 a ratio may lower the loss.
        **kwargs: Further arguments of :class:`GRPOLoss`.
    """

    def __init__(self, clip_high: float | None = 0.28, **kwargs: Any) -> None:
        super().__init__(clip_high=clip_high, **kwargs)

    @override
    def add_up(self, values: Tensor, policy: AnswerLogps) -> Tensor:
        return policy.sum(values).sum(-1)

    @override
    def num_items(self, policy: AnswerLogps) -> Tensor:
        return policy.counts.sum()
