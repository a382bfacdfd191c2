"""Direct preference optimization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lion_lightning.losses.pairs.dpo import SigmoidLoss
from lion_lightning.losses.pairs.preference import PreferenceLoss
from lion_lightning.models.spec import PolicySpec
from lion_lightning.modules.policy_reference import PolicyReferenceModule
from lion_lightning.modules.trainer.batch_kinds import require_pairs
from lion_lightning.ops.logprobs import pair_view
from lion_lightning.references.base import NoReference, Reference
from lion_lightning.types import LossOutput, PackedBatch, PairLogps


class DPOModule(PolicyReferenceModule[PreferenceLoss]):
    """Trains a policy on preference pairs (stage 2 of LIONs, arXiv 2407.06542; DPO: arXiv 2305.18290).

    Logs, for training, validation and test, means over the pairs of the global step (or of the data set): ``loss``;
    ``rewards/chosen``, ``rewards/rejected``, ``rewards/margin`` and ``rewards/accuracy`` (share of positive margins; a
    margin of exactly 0 counts half), as the loss defines rewards; ``logps/chosen`` and ``logps/rejected`` in nats per
    answer; ``lengths/chosen`` and ``lengths/rejected`` in targets; with a reference, ``kl``: the mean log-ratio of
    policy to reference over all answers, in nats. That estimates the KL divergence where the answers are the policy's
    own (online DPO); elsewhere it shows how far the policy has moved on the data.

    Args:
        policy: How to build the policy; a string is short for ``PolicySpec(path=...)``.
        loss: Loss per pair; None for :class:`SigmoidLoss`.
        reference: What the policy is compared with; None for a :class:`CachedReference` of the model that the stage
            starts from, or for nothing where the loss needs nothing.
        **kwargs: Further arguments of :class:`PolicyReferenceModule`; the default learning rate is 5e-7.

    Raises:
        ValueError: If the loss needs a reference and gets none.

    Example:
        ``Trainer(max_steps=100).fit(DPOModule("runs/sft/export"), datamodule)``
    """

    items = "pairs"

    def __init__(
        self,
        policy: PolicySpec | str | dict[str, Any],
        *,
        loss: PreferenceLoss | None = None,
        reference: Reference | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy=policy, loss=loss or SigmoidLoss(), reference=reference, **kwargs)

    @override
    def compute_loss(self, batch: PackedBatch) -> LossOutput:
        view = pair_view(batch)
        reference = view.logps(self.reference_logps(batch))
        policy = view.logps(self.policy_model(batch))
        losses = self.loss(policy, reference)
        with torch.no_grad():
            metrics = self.pair_metrics(policy, reference)
        return LossOutput(losses.sum(), torch.full((), len(losses), device=losses.device), metrics)

    @override
    def require_kind(self, batch: PackedBatch) -> None:
        require_pairs(batch, self)

    def pair_metrics(self, policy: PairLogps, reference: PairLogps) -> dict[str, Tensor]:
        """Sums over the pairs of a batch of what is logged, by log key. Override it to log more."""
        rewards = self.loss.rewards(policy, reference)
        won = (rewards.margin.sign() + 1) / 2  # (pairs,) 1, 0, or 1/2 for a tie
        metrics = {
            "rewards/chosen": rewards.chosen,
            "rewards/rejected": rewards.rejected,
            "rewards/margin": rewards.margin,
            "rewards/accuracy": won,
            "logps/chosen": policy.chosen.sums,
            "logps/rejected": policy.rejected.sums,
            "lengths/chosen": policy.chosen.counts,
            "lengths/rejected": policy.rejected.counts,
        }
        if not isinstance(self.reference, NoReference):
            chosen = policy.chosen.sums - reference.chosen.sums
            rejected = policy.rejected.sums - reference.rejected.sums
            metrics["log_ratio"] = (chosen + rejected) / 2
        return {name: values.sum() for name, values in metrics.items()}
