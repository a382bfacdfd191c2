"""A group's losses can be made of terms per token: GRPO as a user would write it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lion_lightning.losses import GroupLoss
from lion_lightning.types import AnswerLogps, TokenLogps


class GRPO(GroupLoss):
    """Clipped policy gradient with advantages relative to the group (arXiv 2402.03300, eq. 3, without the KL term).

    The reference's log-probs are those of the policy that sampled the answers.
    """

    def forward(self, policy: AnswerLogps, reference: AnswerLogps, values: Tensor) -> Tensor:
        advantages = (values - values.mean(-1, keepdim=True)) / values.std(-1, keepdim=True)
        ratios = (policy.tokens.values - reference.tokens.values).exp()  # (targets,)
        each = advantages.reshape(-1)[policy.owners]
        gains = torch.minimum(ratios * each, ratios.clamp(0.8, 1.2) * each)
        return -(policy.sum(gains) / policy.counts).mean(-1)


def test_ratios_of_tokens_weigh_the_advantage_of_their_answer() -> None:
    counts, owners = torch.tensor([[2.0, 1.0]]), torch.tensor([0, 0, 1])
    old = torch.tensor([-1.0, -2.0, -3.0])
    new = (old + torch.tensor([1.1, 1.5, 0.5]).log()).requires_grad_()
    values = torch.tensor([[3.0, 1.0]])  # advantages 1 / sqrt(2) and -1 / sqrt(2)
    loss = GRPO()(AnswerLogps(TokenLogps(new), owners, counts), AnswerLogps(TokenLogps(old), owners, counts), values)
    # (1.1 + 1.2) / 2 for the good answer; 0.8 for the bad one, since a lower ratio than that gains nothing more
    assert loss.item() == pytest.approx(-(1.15 - 0.8) / 2 / 2**0.5)
    slope = torch.autograd.grad(loss.sum(), new)[0].tolist()
    assert slope == pytest.approx([-1.1 / 2 / 2 / 2**0.5, 0.0, 0.0], rel=1e-5)
