"""A loss of single answers: what is undesirable is unlearned, what is desirable is kept."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lion_lightning import AnswerLoss
from lion_lightning.types import AnswerLogps


class NPOLoss(AnswerLoss):
    """Negative preference optimization (arXiv 2404.05868), and likelihood of the answers to retain."""

    def forward(self, policy: AnswerLogps, reference: AnswerLogps, labels: Tensor) -> Tensor:
        forget = -2 / self.beta * logsigmoid(-self.rewards(policy, reference))  # (answers,)
        return torch.where(labels, -policy.means, forget)
