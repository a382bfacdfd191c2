"""A stage: a policy and a value of each prompt, learned together from answers with scores."""

from typing import Any

import torch
from torch import nn

from lion_lightning.losses.base import AlignmentLoss
from lion_lightning.modules.policy_reference import PolicyReferenceModule
from lion_lightning.ops.logprobs import answer_view
from lion_lightning.types import LossOutput, PackedBatch


class DROModule(PolicyReferenceModule[AlignmentLoss]):
    """Direct reward optimization (DRO-V, arXiv 2405.19107): (r - V(x) - tau log pi / pi_ref)^2 / 2 per answer.

    Needs no pairs, but scores: ``GroupDataModule`` gives them. Logs ``loss``, ``value`` and ``log_ratio``.

    Args:
        tau: Strength of the pull towards the reference.
        **kwargs: As for :class:`PolicyReferenceModule`.
    """

    items = "answers"

    def __init__(self, tau: float = 1.0, **kwargs: Any) -> None:
        super().__init__(loss=AlignmentLoss(beta=tau), **kwargs)

    def configure_model(self) -> None:
        super().configure_model()
        if not hasattr(self, "value"):  # called again by some callbacks
            self.value = nn.Linear(self.policy_model.causal_lm.config.hidden_size, 1)
            nn.init.zeros_(self.value.weight)

    def compute_loss(self, batch: PackedBatch) -> LossOutput:
        view = answer_view(batch, range(len(batch.values)))  # every answer, in the order of the batch
        reference = view.logps(self.reference(batch, self.policy_model))
        hidden = self.policy_model.hidden_states(batch)  # (tokens, hidden): each prompt is there once
        policy = view.logps(self.policy_model.logps(hidden, batch))
        prompts = [batch.segments[batch.segments[answer].parent].stop - 1 for answer in batch.answers]
        ends = torch.tensor(prompts, dtype=torch.int64, device=hidden.device)
        values = self.value(hidden[ends].float()).squeeze(-1)  # (answers,) V(x), from the prompt's last token
        ratios = policy.sums - reference.sums
        scores = torch.tensor(batch.values, device=hidden.device)
        losses = (scores - values - self.loss.beta * ratios) ** 2 / 2
        metrics = {"value": values.detach().sum(), "log_ratio": ratios.detach().sum()}
        return LossOutput(losses.sum(), torch.tensor(len(losses), device=hidden.device), metrics)
