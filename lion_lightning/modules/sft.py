"""Supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from lion_lightning.losses.tokens import NLLLoss, TokenLoss
from lion_lightning.models.spec import PolicySpec
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.modules.trainer.batch_kinds import require_documents
from lion_lightning.modules.trainer.batches import refuse_rounds
from lion_lightning.types import LossOutput, PackedBatch


class SFTModule(AlignmentModule):
    """Fine-tunes a policy on the supervised tokens of packed conversations (stage 1 of LIONs, arXiv 2407.06542).

    Logs ``loss``, ``perplexity`` and ``accuracy`` (share of targets that are the most probable token) for training,
    validation and test. Where targets have weights, all three are weighted means, as
    ``torch.nn.CrossEntropyLoss(weight=...)`` takes them: each target counts its weight, in the sum and in the divisor.

    Args:
        policy: How to build the policy; a string is short for ``PolicySpec(path=...)``.
        loss: Loss per token; None for :class:`NLLLoss`.
        reduction: ``token_mean`` divides by the supervised tokens of the global step (or the sum of their weights);
            ``sum`` by nothing, so that the learning rate must fit the number of tokens per step.
        **kwargs: Further arguments of :class:`AlignmentModule`; the default learning rate is 2e-5.

    Example:
        ``Trainer(max_steps=100).fit(SFTModule("HuggingFaceTB/SmolLM2-135M"), datamodule)``
    """

    items = "supervised tokens"
    metric_transforms: ClassVar[Mapping[str, Callable[[Tensor], Tensor]]] = {"perplexity": torch.exp}

    def __init__(
        self,
        policy: PolicySpec | str | dict[str, Any],
        *,
        loss: TokenLoss | None = None,
        reduction: Literal["token_mean", "sum"] = "token_mean",
        **kwargs: Any,
    ) -> None:
        super().__init__(policy=policy, **kwargs)
        self.loss = loss or NLLLoss()
        self.reduction = reduction

    @override
    def compute_loss(self, batch: PackedBatch) -> LossOutput:
        """Sum of the losses of the supervised tokens, each times its weight; the items are the sum of the weights."""
        logps, top1_correct, *_ = self.policy_model(batch)
        assert top1_correct is not None, "a policy's forward gives it"
        losses, nll, weights = self.loss(logps), -logps.detach(), batch.target_weights
        if weights is None:
            num_items = torch.full((), len(logps), device=logps.device)
        else:
            weights = weights.float()  # bf16-true makes bf16 of all that is float, in which a sum would be coarse
            num_items = weights.sum()
            losses, nll, top1_correct = losses * weights, nll * weights, top1_correct * weights
        return LossOutput(losses.sum(), num_items, {"perplexity": nll.sum(), "accuracy": top1_correct.sum()})

    @override
    def require_data(self, data: Any) -> None:
        """Refuse pairs that would be sampled first."""
        refuse_rounds(self, data)

    @override
    def require_kind(self, batch: PackedBatch) -> None:
        """Take documents only: of preference pairs, the rejected answers would be trained too."""
        require_documents(batch, self)

    @override
    def normalizer(self, num_items: Tensor) -> Tensor:
        """Supervised tokens of the global step (the sum of their weights), or one for ``reduction="sum"``."""
        return num_items if self.reduction == "token_mean" else torch.ones_like(num_items)
