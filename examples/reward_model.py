"""A stage: a reward model trained on preference pairs, in one LightningModule."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from lion_lightning import AlignmentModule
from lion_lightning.types import LossOutput, PackedBatch


class RewardModule(AlignmentModule):
    """Trains a Bradley-Terry reward model: a linear layer on the last hidden state of each answer.

    Works with ``PreferenceDataModule``. Logs ``loss``, ``accuracy`` and ``margin`` for training and validation.

    Args:
        margin: Distance that the chosen answer's reward should keep from the rejected one's.
        **kwargs: As for :class:`AlignmentModule`.
    """

    default_learning_rate = 1e-5

    def __init__(self, margin: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.margin = margin

    def configure_model(self) -> None:
        super().configure_model()
        if not hasattr(self, "head"):  # called again by some callbacks
            width = self.policy_model.causal_lm.config.hidden_size
            self.head = nn.Linear(width, 1, bias=False)
            nn.init.normal_(self.head.weight, std=1 / (width + 1))

    def compute_loss(self, batch: PackedBatch) -> LossOutput:
        hidden = self.policy_model.hidden_states(batch)  # (tokens, hidden): each prompt is there once
        ends = torch.tensor([batch.segments[answer].stop - 1 for answer in batch.answers], device=hidden.device)
        pairs = torch.tensor(batch.pairs, dtype=torch.int64, device=hidden.device).reshape(-1, 2)
        rewards = self.head(hidden[ends.long()]).squeeze(-1)[pairs]  # (pairs, 2): chosen, rejected
        margins = rewards[:, 0] - rewards[:, 1]
        losses = -logsigmoid(margins - self.margin)
        metrics = {"accuracy": (margins > 0).sum(), "margin": margins.detach().sum()}
        return LossOutput(losses.sum(), torch.tensor(len(losses), device=hidden.device), metrics)
