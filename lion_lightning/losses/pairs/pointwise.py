"""Losses that judge each answer by its own reward, against an anchor rather than against the other answer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from typing_extensions import override

from lion_lightning.losses.pairs.preference import PreferenceLoss
from lion_lightning.losses.running_mean import RunningMean
from lion_lightning.types import PairLogps


class NCALoss(PreferenceLoss):
    r"""Noise-contrastive alignment of pairs (arXiv 2402.05369):
    :math:`-\log \sigma(r_w) - \frac12 \log \sigma(-r_w) - \frac12 \log \sigma(-r_l)`.
    """  # noqa: D205

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        chosen, rejected = self.rewards(policy, reference)
        return -logsigmoid(chosen) - (logsigmoid(-chosen) + logsigmoid(-rejected)) / 2


class SPPOHardLoss(PreferenceLoss):
    r"""SPPO with certain preferences (arXiv 2405.00675, eq. 4.7 with P = 1 and 0, :math:`\eta = 1 / \beta`):
    :math:`(\rho_w - 1 / 2\beta)^2 + (\rho_l + 1 / 2\beta)^2`, :math:`\rho` the log-ratios.

    Args:
        beta: Above 0; the log-ratios aimed at are :math:`\pm 1 / 2\beta` nats an answer. The paper takes 0.001.
    """  # noqa: D205

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        chosen, rejected = self.log_ratios(policy, reference)  # rho
        return (chosen - 0.5 / self.beta) ** 2 + (rejected + 0.5 / self.beta) ** 2


class APOZeroLoss(PreferenceLoss):
    r"""APO-zero, :math:`\sigma(-r_w) + \sigma(r_l)`: chosen up, rejected down (arXiv 2408.06266, eq. 7).

    For chosen answers that are better than what the model would say.
    """

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        chosen, rejected = self.rewards(policy, reference)
        return (-chosen).sigmoid() + rejected.sigmoid()


class APODownLoss(PreferenceLoss):
    r"""APO-down, :math:`\sigma(r_w) + \sigma(r_l - r_w)`: both down, rejected further (arXiv 2408.06266, eq. 8).

    For chosen answers that are worse than what the model would say.
    """

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        rewards = self.rewards(policy, reference)
        return rewards.chosen.sigmoid() + (-rewards.margin).sigmoid()


class KTOPairLoss(PreferenceLoss):
    r"""KTO with both halves of each pair as its examples (arXiv 2402.01306, with equal weights).

    .. math:: \tfrac12 (1 - \sigma(\beta (\rho_w - z_l))) + \tfrac12 (1 - \sigma(\beta (z_w - \rho_l)))

    :math:`\rho` are the log-ratios, and :math:`z = \max(0, \mathrm{mean}\, \rho)` estimates the KL divergence of the
    policy from the reference for one side by the other side's answers; no gradient flows through it. The mean is over
    the micro-batch: unlike other losses this one depends on how a step is split, and wants several pairs per row.
    """

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        rewards = self.rewards(policy, reference)
        # beta times z_w and z_l; a micro-batch without pairs has no mean.
        chosen_anchor, rejected_anchor = (side.detach().sum().relu() / max(len(side), 1) for side in rewards)
        return ((rejected_anchor - rewards.chosen).sigmoid() + (rewards.rejected - chosen_anchor).sigmoid()) / 2


class BCOPairLoss(PreferenceLoss):
    r"""Binary classifier optimization of pairs (arXiv 2404.04656).

    :math:`-\log \sigma(r_w - \delta) - \log \sigma(\delta - r_l)`, with :math:`\delta` the mean reward of both sides
    over all ranks and all training steps before this one: however a step is split its loss is the same, and the mean
    resumes with the checkpoint. At the first step it is 0, as the rewards are.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)
        self.both = RunningMean()

    @property
    def shift(self) -> Tensor:
        r""":math:`\delta`, a scalar."""
        return self.both.mean

    @override
    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        """Loss per pair; in training mode the rewards enter the running mean."""
        chosen, rejected = self.rewards(policy, reference)
        self.both.add(torch.stack([chosen, rejected]))
        return -logsigmoid(chosen - self.shift) - logsigmoid(self.shift - rejected)

    @override
    def after_step(self, add_up: Callable[[Tensor], Tensor]) -> None:
        self.both.end_step(add_up)
