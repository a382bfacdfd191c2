"""The reward model: a sequence classifier that gives each answer of a packed batch one number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from lion_lightning.models.packing.model import PackedModel
from lion_lightning.models.weights.dtensor import to_local
from lion_lightning.types import PackedBatch

PREFIXES = [0, 2, 4]
"""Last tokens of the texts whose scores a model is checked by."""


class RewardModel(PackedModel):
    """A classifier of transformers with one output, run on trees of answers; see :class:`PackedModel`.

    The reward of an answer is what ``AutoModelForSequenceClassification`` gives for prompt and answer alone: its head,
    a linear layer without bias, on the last hidden state at the last token. That is the answer's last token in the
    rendered conversation: the one that ends the turn, or the white space that the chat template puts after it. A prompt
    is computed once for all of its answers.

    Args:
        model: A sequence classifier with ``num_labels=1``, or a PEFT model around one.
        packed: As :class:`PackedModel` takes it.
        probe: As :class:`PackedModel` takes it.

    Raises:
        ValueError: The model's score is not its head on the hidden state of the last token.
    """

    fault = (
        "its score is not that of a linear head on the last token's hidden state, so it cannot be trained on packed "
        "rows; choose a model of another family"
    )

    @override
    def forward(self, batch: PackedBatch) -> Tensor:
        """Reward of every answer of a packed batch.

        Args:
            batch: Rows on the model's device.

        Returns:
            ``(answers,)`` fp32 rewards, in the order of ``batch.answers``.
        """
        answers, device = batch.answers, batch.input_ids.device
        ends = torch.tensor([batch.segments[answer].stop - 1 for answer in answers], dtype=torch.int64)
        ends = ends.to(device, non_blocking=True)  # (answers,)
        owners = torch.tensor(answers, dtype=torch.int64).to(device, non_blocking=True)
        batch = self.rotary.apart(replace(batch, logit_positions=ends, target_segments=owners))  # may move the ends
        return self._scores(self.hidden_states(batch)[batch.logit_positions])

    def _scores(self, states: Tensor) -> Tensor:
        weight = to_local(score_head(self.causal_lm)[1].weight)  # the same on all ranks of a tensor-parallel group
        # No matrix product, which autocast would run in half precision.
        return (states.float() * weight[0].float()).sum(-1)

    @override
    def head_output(self, states: Tensor) -> Tensor | None:
        fits = states.shape[-1] == score_head(self.causal_lm)[1].weight.shape[1]
        # In the dtype of the classifier's own, which rounds it: they agree to that.
        return self._scores(states[PREFIXES]).to(states.dtype) if fits else None

    @override
    def _logits(self, row: Tensor) -> Tensor:
        # Of several texts: a single score may be so close to 0 that rounding is all that there is to compare.
        return torch.cat([super(RewardModel, self)._logits(row[:, : last + 1]) for last in PREFIXES])


def score_head(model: PreTrainedModel) -> tuple[str, Any]:
    """Name and module of a classifier's head: the one part outside of its backbone that has weights.

    Args:
        model: A sequence classifier, with peft's adapters in it or not.

    Raises:
        ValueError: The head is not a linear layer without bias and with one output.
    """
    heads: dict[str, nn.Module] = {}
    for name, part in model.named_children():
        if name != model.base_model_prefix and next(part.parameters(), None) is not None:
            heads[name] = part
    for name, head in heads.items():
        weight: Any = getattr(head, "weight", None)
        if len(heads) == 1 and weight is not None and weight.dim() == 2 and getattr(head, "bias", None) is None:
            return name, head
    raise ValueError(
        f"{type(model).__name__}: its head ({', '.join(heads) or 'none'}) is not one linear layer without bias, as "
        "reward models have; choose a model of another family"
    )
