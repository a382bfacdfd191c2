"""Base of the modules that compare a policy with a reference: when the reference is set up, computed and updated."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from lion_lightning.distributed.replicas import sum_over_replicas
from lion_lightning.losses.base import AlignmentLoss
from lion_lightning.models.spec import PolicySpec
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.modules.trainer.batches import refuse_rounds, refuse_streams
from lion_lightning.modules.trainer.reference_passes import precompute_evaluation, precompute_training
from lion_lightning.references.base import NoReference, Reference
from lion_lightning.references.cached import CachedReference
from lion_lightning.types import PackedBatch, TokenLogps

LossT = TypeVar("LossT", bound=AlignmentLoss)


class PolicyReferenceModule(AlignmentModule, ABC, Generic[LossT]):
    """Trains a policy by a loss that compares it with a reference.

    A subclass implements ``compute_loss``, in which ``self.reference_logps(batch)`` gives the reference's
    log-prob of each target, as ``self.policy_model(batch)`` gives the policy's.

    Args:
        policy: How to build the policy; a string is short for ``PolicySpec(path=...)``.
        loss: The objective.
        reference: What the policy is compared with; None for a :class:`CachedReference` of the model that the stage
            starts from, or for nothing where the loss needs nothing.
        **kwargs: Further arguments of :class:`AlignmentModule`; the default learning rate is 5e-7.

    Raises:
        ValueError: If the loss needs a reference and gets none.
    """

    default_learning_rate = 5e-7
    typical_answers = 2

    def __init__(
        self,
        policy: PolicySpec | str | dict[str, Any],
        *,
        loss: LossT,
        reference: Reference | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy=policy, **kwargs)
        self.loss = loss
        self.reference = reference or (CachedReference() if self.loss.needs_reference else NoReference())
        if self.loss.needs_reference and isinstance(self.reference, NoReference):
            raise ValueError(
                f"model.loss: {type(self.loss).__name__} compares the policy with a reference, and model.reference is "
                "NoReference; leave model.reference out for cached log-probs, or choose a loss without a reference"
            )

    @override
    def require_data(self, data: Any) -> None:
        """Refuse answers that are streamed or others in each epoch, where the reference is computed before.

        With a reference that is computed meanwhile, rounds of what the module trains on are taken.
        """
        if isinstance(self.reference, CachedReference):
            refuse_rounds(self, data)
            refuse_streams(self, data)
        else:
            refuse_rounds(self, data, unless={"pairs": "pairs", "prompts": "groups"}.get(self.items))

    def reference_logps(self, batch: PackedBatch) -> TokenLogps:
        """Log-probs of the batch's targets under the reference.

        Raises:
            ValueError: A reference of the user's gives something else.
        """
        logps: Any = self.reference(batch, self.policy_model)
        if isinstance(logps, TokenLogps) and len(logps.values) == len(batch.targets):
            return logps
        found = f"{len(logps.values)} log-probs" if isinstance(logps, TokenLogps) else f"a {type(logps).__name__}"
        raise ValueError(
            f"model.reference: {type(self.reference).__name__} gave {found} for a batch of {len(batch.targets)} "
            "targets; return TokenLogps, a log-prob for each of batch.targets"
        )

    @override
    def configure_model(self) -> None:
        """Build the policy, and the reference as the stage starts from it."""
        super().configure_model()
        self.reference.attach(self.policy_model, self.build)

    @override
    def on_fit_start(self) -> None:
        """Precompute the reference on all answers that train or validate."""
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
        """Precompute the reference on the answers that validate, outside of a fit."""
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._precompute_evaluation()

    @override
    def on_test_start(self) -> None:
        """Precompute the reference on the answers that test."""
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
        self.loss.after_step(partial(sum_over_replicas, strategy=self.trainer.strategy))
        self.reference.after_step(self.global_step + 1, self.policy_model)  # Lightning counts when this returns

    @override
    def provenance(self) -> dict[str, Any]:
        return {**super().provenance(), "reference": self.reference.identity()}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.reference.restore(checkpoint.get("lion", {}).get("reference", {}))

    def _precompute_all(self) -> None:
        precompute_training(self.reference, self.policy_model, self.trainer, self.require_kind)
        self._precompute_evaluation()

    def _precompute_evaluation(self) -> None:
        precompute_evaluation(self.reference, self.policy_model, self.trainer)
