"""Direct preference optimization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from typing_extensions import override

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.losses.dpo import SigmoidLoss
from lion_lightning.losses.preference import PreferenceLoss
from lion_lightning.models.spec import PolicySpec
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.modules.batches import evaluation_batches, refuse_rounds, refuse_streams, train_batches
from lion_lightning.ops.logprobs import pair_logps, pair_segments
from lion_lightning.references.base import NoReference, Reference
from lion_lightning.references.cached import CachedReference
from lion_lightning.types import LossOutput, PackedBatch, PairLogps


class DPOModule(AlignmentModule):
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
        **kwargs: Further arguments of :class:`AlignmentModule`; the default learning rate is 5e-7.

    Raises:
        ValueError: If the loss needs a reference and gets none.

    Example:
        ``Trainer(max_steps=100).fit(DPOModule("runs/sft/export"), datamodule)``
    """

    default_learning_rate = 5e-7

    def __init__(
        self,
        policy: PolicySpec | str | dict[str, Any],
        *,
        loss: PreferenceLoss | None = None,
        reference: Reference | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy=policy, **kwargs)
        self.loss = loss or SigmoidLoss()
        self.reference = reference or (CachedReference() if self.loss.needs_reference else NoReference())
        if self.loss.needs_reference and isinstance(self.reference, NoReference):
            raise ValueError(
                f"model.loss: {type(self.loss).__name__} compares the policy with a reference, and model.reference is "
                "NoReference; leave model.reference out for cached log-probs, or choose a loss without a reference"
            )

    @override
    def compute_loss(self, batch: PackedBatch) -> LossOutput:
        reference = self.reference(batch, self.policy_model)
        policy = pair_logps(self.policy_model(batch), batch)
        losses = self.loss(policy, reference)
        with torch.no_grad():
            metrics = self.pair_metrics(policy, reference)
        return LossOutput(losses.sum(), torch.full((), len(losses), device=losses.device), metrics)

    @override
    def require_data(self, data: Any) -> None:
        """Refuse pairs that are others in each epoch, or are streamed, where the reference is computed before."""
        if isinstance(self.reference, CachedReference):
            refuse_rounds(self, data)
            refuse_streams(self, data)

    @override
    def require_kind(self, batch: PackedBatch) -> None:
        pair_segments(batch)  # raises for anything but pairs

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
            metrics["kl"] = (chosen + rejected) / 2
        return {name: values.sum() for name, values in metrics.items()}

    @override
    def configure_model(self) -> None:
        """Build the policy, and the reference as the stage starts from it."""
        super().configure_model()
        self.reference.attach(self.policy_model, self.build)

    @override
    def on_fit_start(self) -> None:
        """Precompute the reference on all training and validation pairs."""
        super().on_fit_start()
        self._precompute_all()

    @override
    def on_train_start(self) -> None:
        """Precompute again after a sharded checkpoint, which is loaded late."""
        restored = self._resumed is not None and self.trainer.strategy.restore_checkpoint_after_setup
        super().on_train_start()
        if restored:
            self._precompute_all()

    @override
    def on_validation_start(self) -> None:
        """Precompute the reference on the validation pairs, outside of a fit."""
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._precompute_evaluation()

    @override
    def on_test_start(self) -> None:
        """Precompute the reference on the test pairs."""
        self._precompute_evaluation()

    @override
    def on_train_epoch_start(self) -> None:
        """Precompute again where the reference changes with the epoch."""
        if self.reference.before_epoch(self.current_epoch, self.policy_model):
            self._precompute_all()

    @override
    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step, then let loss and reference follow."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.loss.after_step(self._add_up)
        self.reference.after_step(self.global_step + 1, self.policy_model)  # Lightning counts when this returns

    @override
    def provenance(self) -> dict[str, Any]:
        return {**super().provenance(), "reference": self.reference.identity()}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare with what the checkpoint was compared with."""
        super().on_load_checkpoint(checkpoint)
        self.reference.restore(checkpoint.get("lion", {}).get("reference", {}))

    def _add_up(self, values: Tensor) -> Tensor:
        total = self.trainer.strategy.reduce(values, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def _precompute_all(self) -> None:
        ranks = Ranks.of(self.trainer.strategy)
        self.reference.precompute(train_batches(self.trainer), self.policy_model, ranks, "training")
        self._precompute_evaluation()

    def _precompute_evaluation(self) -> None:
        ranks = Ranks.of(self.trainer.strategy)
        for number, batches in enumerate(evaluation_batches(self.trainer)):
            title = f"evaluation {number}" if number else "evaluation"
            self.reference.precompute(batches, self.policy_model, ranks, title)
