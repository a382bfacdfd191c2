"""Losses that pull desirable answers up and others down from a reference point."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from typing_extensions import override

from lion_lightning.losses.answers.answer import AnswerLoss
from lion_lightning.losses.base import out_of_range
from lion_lightning.losses.running_mean import RunningMean
from lion_lightning.types import AnswerLogps


class KTOLoss(AnswerLoss):
    r"""KTO (arXiv 2402.01306, eq. 7 and 8): :math:`\lambda_y - v(x, y)`, prospect theory's value of an answer.

    .. math::
        v_D = \lambda_D \sigma(\beta(\rho - z_0)), \qquad v_U = \lambda_U \sigma(\beta(z_0 - \rho)),
        \qquad z_0 = \max(0, \mathrm{mean}\, \rho')

    for desirable and undesirable answers.

    :math:`\rho` is the log-ratio of policy to reference, :math:`\rho'` that of answers to other prompts. The reference
    point :math:`z_0` stands for the KL divergence of the policy from the reference; no gradient flows through it. It is
    an estimate with two biases: the mismatched answers come from the data and not from the policy, so that their mean
    is below the divergence and may be negative; and being cut at 0 it is too large on average, the more so the fewer
    mismatched answers it is a mean of. That mean is over the micro-batch of a rank: unlike other losses this one
    depends on how a step is split, and wants many answers per row.

    Args:
        beta: Strength of the pull towards the reference, above 0.
        desirable_weight: :math:`\lambda_D`, at least 0. The paper wants :math:`\lambda_D n_D / (\lambda_U n_U)` between
            1 and 4/3 for :math:`n_D` desirable answers and :math:`n_U` others.
        undesirable_weight: :math:`\lambda_U`, at least 0.
    """

    needs_mismatched = True

    def __init__(self, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> None:
        super().__init__(beta)
        for name, weight in (("desirable_weight", desirable_weight), ("undesirable_weight", undesirable_weight)):
            if not 0 <= weight < float("inf"):
                raise out_of_range(self, name, weight, "of at least 0")
        self.desirable_weight = desirable_weight
        self.undesirable_weight = undesirable_weight
        self._anchor = torch.zeros(())  # beta z_0 of the micro-batch

    @override
    def observe_mismatched(self, policy: AnswerLogps, reference: AnswerLogps) -> None:
        rewards = self.rewards(policy, reference).detach()
        self._anchor = rewards.sum().relu() / max(len(rewards), 1)  # a micro-batch without any has no mean

    @override
    def forward(self, policy: AnswerLogps, reference: AnswerLogps, labels: Tensor) -> Tensor:
        rewards = self.rewards(policy, reference)  # (answers,) beta rho
        anchor = self._anchor.to(rewards)
        desirable = self.desirable_weight * (anchor - rewards).sigmoid()  # lambda_D (1 - sigmoid(r - beta z_0))
        undesirable = self.undesirable_weight * (rewards - anchor).sigmoid()
        return torch.where(labels, desirable, undesirable)


class APOZeroUnpairedLoss(KTOLoss):
    r"""APO-zero on single answers: KTO with the reference point 0 (arXiv 2408.06266, eq. 7 taken apart).

    :math:`\lambda_D \sigma(-r)` for desirable answers, :math:`\lambda_U \sigma(r)` for others; it needs no mismatched
    answers, and its loss does not depend on how a step is split.

    Args:
        beta: Strength of the pull towards the reference, above 0.
        desirable_weight: :math:`\lambda_D`, at least 0.
        undesirable_weight: :math:`\lambda_U`, at least 0.
    """

    needs_mismatched = False


class BCOLoss(AnswerLoss):
    r"""Binary classifier optimization (arXiv 2404.04656): :math:`-\log \sigma(\pm(r - \delta))`, + if desirable.

    :math:`\delta = \frac12(\mathrm{mean}_{D}\, r + \mathrm{mean}_{U}\, r)`: each mean is over all ranks and all
    training steps before this one, so that neither the split of a step nor the share of desirable answers changes it,
    and it resumes with the checkpoint. The mean of a kind that was not seen yet is 0, as the rewards are at first. The
    paper's density-ratio weights for desirable and undesirable answers to different prompts (UDM) are left out.

    Args:
        beta: Strength of the pull towards the reference, above 0.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)
        self.desirable, self.undesirable = RunningMean(), RunningMean()

    @property
    def shift(self) -> Tensor:
        r""":math:`\delta`, a scalar."""
        return (self.desirable.mean + self.undesirable.mean) / 2

    @override
    def forward(self, policy: AnswerLogps, reference: AnswerLogps, labels: Tensor) -> Tensor:
        """Loss per answer; in training mode the rewards enter the running means."""
        rewards = self.rewards(policy, reference)
        self.desirable.add(rewards, labels)
        self.undesirable.add(rewards, ~labels)
        margin = rewards - self.shift
        return -logsigmoid(torch.where(labels, margin, -margin))

    @override
    def after_step(self, add_up: Callable[[Tensor], Tensor]) -> None:
        self.desirable.end_step(add_up)
        self.undesirable.end_step(add_up)
