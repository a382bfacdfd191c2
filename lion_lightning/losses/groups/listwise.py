"""Listwise losses: of the ranking of all answers to a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from typing_extensions import override

from lion_lightning.losses.base import out_of_range
from lion_lightning.losses.groups.group import GroupLoss, differences
from lion_lightning.types import AnswerLogps

LARGEST_LABEL = 128.0
"""Label from which on 2^label is no finite fp32 number."""


class PlackettLuceLoss(GroupLoss):
    r"""Listwise DPO: the Plackett-Luce likelihood of the ranking (arXiv 2305.18290, appendix A.3, eq. 20).

    .. math:: -\sum_k \log \frac{e^{r_{(k)}}}{\sum_{j \ge k} e^{r_{(j)}}}

    with the answers from best to worst. Each answer is to be picked from those that are worse: of answers with equal
    values none is picked from the others, so that their order never matters; a group of equal values has a loss of 0.
    For two answers it is DPO.
    """

    @override
    def forward(self, policy: AnswerLogps, reference: AnswerLogps, values: Tensor) -> Tensor:
        rewards = self.rewards(policy, reference)  # (groups, n)
        offered = (values[:, :, None] > values[:, None, :]) | torch.eye(values.shape[1], device=values.device).bool()
        # (groups, n, n): from what answer i is picked
        pools = rewards[:, None, :].expand(offered.shape).masked_fill(~offered, -torch.inf)
        return (pools.logsumexp(-1) - rewards).sum(-1)


class LambdaLoss(GroupLoss):
    r"""LiPO-lambda (arXiv 2402.01878, eq. 8 to 10): DPO over all pairs, weighted by what a swap of both would cost.

    .. math::
        \sum_{\psi_i > \psi_j} \Delta_{ij} \log(1 + e^{-(r_i - r_j)}), \qquad
        \Delta_{ij} = |2^{\psi_i} - 2^{\psi_j}| \left|\frac{1}{\log_2(1 + \tau_i)} - \frac{1}{\log_2(1 + \tau_j)}\right|

    :math:`\tau` are the ranks (1, 2, ...) by the policy's rewards, equal ones in the order of the data; no gradient
    flows through the weights, which are those of DCG. Pairs of equal values are left out. For two answers it is DPO
    times a number that depends on their values alone.

    Args:
        beta: Strength of the pull towards the reference, above 0.
        lowest: Value that stands for a label :math:`\psi` of 0.
        highest: Value that stands for a label of 1, above ``lowest``. The paper's labels are probabilities to win, from
            0 to 1; scores from 1 to 10 want ``lowest: 1, highest: 10``, or the best of them would outweigh all others.

    Raises:
        ValueError: The range is empty.
    """

    def __init__(self, beta: float = 0.1, lowest: float = 0.0, highest: float = 1.0) -> None:
        super().__init__(beta)
        if not -float("inf") < lowest < float("inf"):
            raise out_of_range(self, "lowest", lowest, "that is finite")
        if not lowest < highest < float("inf"):
            raise out_of_range(self, "highest", highest, f"above lowest, which is {lowest}")
        self.lowest, self.highest = lowest, highest

    @override
    def check_values(self, values: Sequence[float]) -> None:
        """Refuse a value so far above the range that its gain is not finite."""
        largest = max(values, default=self.lowest)
        if (largest - self.lowest) / (self.highest - self.lowest) >= LARGEST_LABEL:
            raise ValueError(
                f"LambdaLoss: a value of {largest:g} is too far above the range from {self.lowest:g} to "
                f"{self.highest:g}, 2^label is infinite; set lowest and highest to the range of the scores"
            )

    @override
    def forward(self, policy: AnswerLogps, reference: AnswerLogps, values: Tensor) -> Tensor:
        rewards = self.rewards(policy, reference)  # (groups, n) s
        gains = ((values - self.lowest) / (self.highest - self.lowest)).exp2()  # 2^psi
        order = rewards.detach().argsort(dim=-1, descending=True, stable=True)
        discounts = 1 / (order.argsort(-1) + 2).to(rewards).log2()  # 1 / log2(1 + tau)
        weights = (differences(gains) * differences(discounts)).abs()  # (groups, n, n)
        better = differences(values) > 0
        return -(better * weights * logsigmoid(differences(rewards))).sum((-2, -1))
