"""REINFORCE and its relative: an answer is one action, and the penalty is part of its reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from typing_extensions import override

from lion_lightning.losses.policy_gradients.grpo import centered
from lion_lightning.losses.policy_gradients.kl import KLInReward, KLPenalty
from lion_lightning.losses.policy_gradients.policy_gradient import PolicyGradientLoss
from lion_lightning.losses.running_mean import RunningMean
from lion_lightning.types import AnswerLogps


class RLOOLoss(PolicyGradientLoss):
    r"""REINFORCE leave-one-out (arXiv 2402.14740, section 3.3): the baseline is the mean of the other rewards.

    .. math:: A_i = r_i - \frac{1}{n - 1} \sum_{j \ne i} r_j, \qquad \rho_i = \frac{\pi(y_i)}{\pi_{old}(y_i)}

    An answer is one action: its ratio is the whole answer's, clipped as in TRL's RLOOTrainer, and its loss is
    :math:`-\rho_i A_i`. The KL penalty is part of the reward. The loss of a group is the mean over its answers.

    Args:
        beta: Weight of the KL penalty in the reward, 0 or more; 0 needs no reference.
        clip_low: How far below 1 a ratio may lower the loss; None for no clipping on either side.
        clip_high: How far above 1; None for ``clip_low``.
    """

    def __init__(self, beta: float = 0.05, clip_low: float | None = 0.2, clip_high: float | None = None) -> None:
        super().__init__(beta, KLInReward(), clip_low, clip_high)

    @override
    def advantages(self, rewards: Tensor) -> Tensor:
        n = rewards.shape[-1]
        # The mean of the others is (n * mean - r_i) / (n - 1), so that A_i = (r_i - mean) * n / (n - 1).
        return centered(rewards, self) * n / (n - 1)

    @override
    def token_log_ratios(self, policy: AnswerLogps, old: AnswerLogps) -> Tensor:
        # Each token of an answer has the answer's ratio, and add_up takes their mean: the loss of one action.
        return policy.sum(super().token_log_ratios(policy, old)).reshape(-1)[policy.owners]


class REINFORCELoss(PolicyGradientLoss):
    r"""REINFORCE (Williams, 1992) with the mean reward of the run as its baseline.

    .. math:: A_i = r_i - b, \qquad \frac{1}{n} \sum_i \sum_t (\text{loss of token } t)

    The baseline is the mean of the rewards, less any penalty, that all ranks saw in the optimizer steps before, 0 in
    the first; it is part of the checkpoint. Groups of equal rewards have a signal, too: keep them
    (``data.keep_equal: true``), or the mean is that of the other groups.

    Args:
        baseline: Whether rewards are compared with their mean; otherwise an answer's advantage is its reward.
        kl: How the divergence is estimated and where it goes; None for :class:`KLInReward`.
        **kwargs: Further arguments of :class:`PolicyGradientLoss`.
    """

    learns_from_equal = True

    def __init__(self, baseline: bool = True, kl: KLPenalty | None = None, **kwargs: Any) -> None:
        super().__init__(kl=kl or KLInReward(), **kwargs)
        self.mean_reward = RunningMean() if baseline else None

    @override
    def forward(
        self, policy: AnswerLogps, reference: AnswerLogps, values: Tensor, old: AnswerLogps | None = None
    ) -> Tensor:
        if self.mean_reward is not None:  # these rewards are part of the baseline from the next step on
            self.mean_reward.add(self.penalized(values, reference, old or policy.detach()))
        return super().forward(policy, reference, values, old)

    @override
    def advantages(self, rewards: Tensor) -> Tensor:
        return rewards if self.mean_reward is None else rewards - self.mean_reward.mean

    @override
    def add_up(self, values: Tensor, policy: AnswerLogps) -> Tensor:
        return policy.sum(values).mean(-1)

    @override
    def after_step(self, add_up: Callable[[Tensor], Tensor]) -> None:
        if self.mean_reward is not None:
            self.mean_reward.end_step(add_up)
