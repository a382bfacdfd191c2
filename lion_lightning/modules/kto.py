"""Training on single answers that are labeled desirable or not."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lion_lightning.losses.answers.answer import AnswerLoss
from lion_lightning.losses.answers.kto import KTOLoss
from lion_lightning.models.spec import PolicySpec
from lion_lightning.modules.policy_reference import PolicyReferenceModule
from lion_lightning.modules.trainer.batch_kinds import require_labels
from lion_lightning.ops.logprobs import answer_view
from lion_lightning.references.base import NoReference, Reference
from lion_lightning.types import AnswerLogps, LossOutput, PackedBatch, SumOver, TokenLogps, keep_answers

log = logging.getLogger(__name__)


class KTOModule(PolicyReferenceModule[AnswerLoss]):
    """Trains a policy on answers that are labeled desirable or not, one by one (KTO: arXiv 2402.01306).

    A batch's labels are its values, 1 or 0. Answers of value NaN are mismatched ones, of another prompt: a loss that
    needs them sees their log-probs, which are computed without a gradient and apart from the others; they are no items.

    Logs, for training, validation and test, ``loss`` and, as means over the labeled answers of the global step (or of
    the data set), ``desirable``, the share of them; with a reference ``kl``, the mean log-ratio of policy to reference
    in nats, and ``kl/mismatched``, that of the mismatched answers where the loss needs them, from which KTO's reference
    point comes. As means over the answers of their kind (NaN in a step without any): ``rewards/chosen`` of
    desirable and ``rewards/rejected`` of undesirable answers, as the loss defines rewards, ``rewards/margin``, the
    difference of both, ``logps/chosen`` and ``logps/rejected`` in nats per answer, ``lengths/chosen`` and
    ``lengths/rejected`` in targets.

    Args:
        policy: How to build the policy; a string is short for ``PolicySpec(path=...)``.
        loss: Loss per answer; None for :class:`KTOLoss`.
        reference: What the policy is compared with; None for a :class:`CachedReference` of the model that the stage
            starts from, or for nothing where the loss needs nothing.
        **kwargs: Further arguments of :class:`PolicyReferenceModule`; the default learning rate is 5e-7.

    Raises:
        ValueError: If the loss needs a reference and gets none.

    Example:
        ``Trainer(max_steps=100).fit(KTOModule("runs/sft/export"), datamodule)``
    """

    items = "labeled answers"
    typical_answers = 1
    metric_differences: ClassVar[Mapping[str, tuple[str, str]]] = {
        "rewards/margin": ("rewards/chosen", "rewards/rejected")
    }

    def __init__(
        self,
        policy: PolicySpec | str | dict[str, Any],
        *,
        loss: AnswerLoss | None = None,
        reference: Reference | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy=policy, loss=loss or KTOLoss(), reference=reference, **kwargs)

    @override
    def compute_loss(self, batch: PackedBatch) -> LossOutput:
        labeled = [position for position, value in enumerate(batch.values) if not math.isnan(value)]
        trained = batch if len(labeled) == len(batch.values) else keep_answers(batch, labeled)
        base = self.reference_logps(batch)  # of all answers at once
        metrics = self._observe(batch, base) if self.loss.needs_mismatched else {}
        reference = answer_view(batch, labeled).logps(base)
        policy = answer_view(trained, range(len(labeled))).logps(self.policy_model(trained))
        labels = torch.tensor([batch.values[position] == 1.0 for position in labeled], dtype=torch.bool)
        labels = labels.to(batch.targets.device, non_blocking=True)
        losses = self.loss(policy, reference, labels)
        with torch.no_grad():
            metrics |= self.answer_metrics(policy, reference, labels)
        return LossOutput(losses.sum(), torch.full((), len(losses), device=losses.device), metrics)

    @override
    def require_data(self, data: Any) -> None:
        """Also refuse data without mismatched answers where the loss needs them, and warn where it does not."""
        super().require_data(data)
        loss, mismatched = type(self.loss).__name__, getattr(data, "mismatched", None)
        if self.loss.needs_mismatched and mismatched is False:
            raise ValueError(
                f"model.loss: {loss} estimates a KL divergence from answers to other prompts, and data.mismatched is "
                "false; set it to true, or choose a loss without such a term, as APOZeroUnpairedLoss or BCOLoss"
            )
        if mismatched and not self.loss.needs_mismatched:
            log.warning(
                "%s has no use for mismatched answers, and the data makes them: set data.mismatched: false to save "
                "their tokens.",
                loss,
            )

    @override
    def require_kind(self, batch: PackedBatch) -> None:
        require_labels(batch, self)
        made = self._trainer is not None and getattr(self.trainer.datamodule, "mismatched", None)  # type: ignore[attr-defined]
        if self.loss.needs_mismatched and batch.values and not made and not any(map(math.isnan, batch.values)):
            raise ValueError(
                f"{type(self.loss).__name__} estimates a KL divergence from answers to other prompts (of value NaN), "
                "and the batch has none; use UnpairedDataModule(mismatched=True)"
            )

    def answer_metrics(
        self, policy: AnswerLogps, reference: AnswerLogps, labels: Tensor
    ) -> dict[str, Tensor | SumOver]:
        """Sums over the labeled answers of a batch of what is logged, by log key. Override it to log more."""
        rewards = self.loss.rewards(policy, reference)
        metrics: dict[str, Tensor | SumOver] = {"desirable": labels.sum()}
        for name, kind in (("chosen", labels), ("rejected", ~labels)):
            number = kind.sum()
            metrics[f"rewards/{name}"] = SumOver((rewards * kind).sum(), number)
            metrics[f"logps/{name}"] = SumOver((policy.sums * kind).sum(), number)
            metrics[f"lengths/{name}"] = SumOver((policy.counts * kind).sum(), number)
        if not isinstance(self.reference, NoReference):
            metrics["log_ratio"] = (policy.sums - reference.sums).sum()
        return metrics

    @torch.no_grad()
    def _observe(self, batch: PackedBatch, reference: TokenLogps) -> dict[str, Tensor | SumOver]:
        """Show the loss the mismatched answers; without any, one forward keeps step with other ranks."""
        mismatched = [position for position, value in enumerate(batch.values) if math.isnan(value)]
        apart = keep_answers(batch, mismatched)
        policy = answer_view(apart, range(len(mismatched))).logps(self.policy_model(apart))
        base = answer_view(batch, mismatched).logps(reference)
        self.loss.observe_mismatched(policy, base)
        number = torch.full((), len(mismatched), device=policy.sums.device)
        return {"log_ratio/mismatched": SumOver((policy.sums - base.sums).sum(), number)}
