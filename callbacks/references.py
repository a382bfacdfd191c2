"""References in a LightningModule of one's own: attached, precomputed, updated and kept in checkpoints."""

from __future__ import annotations

from typing import Any, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from lion_lightning.models.generation.trained import builds_early, find_policy
from lion_lightning.models.packing.model import PackedModel
from lion_lightning.models.policy import PolicyModel
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.modules.trainer.batch_kinds import require_packed
from lion_lightning.modules.trainer.batches import refuse_streams
from lion_lightning.modules.trainer.reference_passes import precompute_epoch, precompute_evaluation, precompute_training
from lion_lightning.one_lightning import LionCallback
from lion_lightning.references.base import Reference, stored_model
from lion_lightning.references.cached import CachedReference


class PrecomputeReference(LionCallback):
    """Runs the references of a LightningModule of your own, as the modules of this package run theirs.

    These are its attributes that are a :class:`~lion_lightning.Reference`, of which ``training_step`` asks
    ``self.reference(batch, self.model)``. Each is attached to the policy as it is before training, computed ahead where
    it allows that (on all answers that train or validate; epoch by epoch, where the Trainer makes the loader anew for
    each), told of epochs and optimizer steps, and its identity is kept in checkpoints, so that a resumed run compares
    with the same model.

    The policy is the module's ``policy_model``, or the one :class:`~lion_lightning.PolicyModel` in it that trains. A
    module that builds it in ``configure_model`` and has a ``FrozenReference`` calls
    ``reference.attach(policy, stored_model(policy))`` there, since a checkpoint holds that reference's weights.

    Raises:
        MisconfigurationException: Before training, if the module has no reference, no policy, or runs them itself.
    """

    def __init__(self) -> None:
        self._references: dict[str, Reference] = {}
        self._policy: PackedModel | None = None
        self._step = 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        name = type(pl_module).__name__
        if isinstance(pl_module, AlignmentModule):
            raise MisconfigurationException(
                f"PrecomputeReference: {name} runs its reference itself; take the callback out of trainer.callbacks"
            )
        self._references = {key: each for key, each in pl_module.named_modules() if isinstance(each, Reference)}
        if not self._references:
            raise MisconfigurationException(
                f"PrecomputeReference: {name} has no reference; set one in __init__ (self.reference = "
                "lion_lightning.CachedReference()), or take the callback out of trainer.callbacks"
            )
        if any(isinstance(each, CachedReference) for each in self._references.values()):
            refuse_streams(pl_module, getattr(trainer, "datamodule", None))
        if builds_early(pl_module):
            self._attach(pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attach(pl_module)
        self._step = trainer.global_step
        if not _makes_loaders(trainer):
            self._precompute(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fit_loop.restarted_mid_epoch and _makes_loaders(trainer):  # that epoch does not start again
            self._precompute(trainer)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        changed = [each.before_epoch(trainer.current_epoch, self._model) for each in self._references.values()]
        if any(changed) or _makes_loaders(trainer):
            self._precompute(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            for reference in self._references.values():
                reference.after_step(self._step, self._model)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._evaluate(trainer, pl_module)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluate(trainer, pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {name: reference.identity() for name, reference in self._references.items()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, reference in self._references.items():
            reference.restore(state_dict.get(name, {}))

    @property
    def _model(self) -> PolicyModel:
        assert self._policy is not None, "it was attached in setup or on_fit_start"
        return cast(PolicyModel, self._policy)  # or the unit of FSDPStrategy around it

    def _attach(self, module: LightningModule) -> None:
        self._policy = find_policy(module, type(self).__name__)
        for reference in self._references.values():
            reference.attach(self._model, stored_model(self._model))

    def _precompute(self, trainer: Trainer) -> None:
        for reference in self._references.values():
            if _makes_loaders(trainer):
                precompute_epoch(reference, self._model, trainer, f"epoch {trainer.current_epoch}")
            else:
                precompute_training(reference, self._model, trainer, require_packed)
            precompute_evaluation(reference, self._model, trainer)

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        self._attach(module)
        for reference in self._references.values():
            precompute_evaluation(reference, self._model, trainer)


def _makes_loaders(trainer: Trainer) -> bool:
    """True if each epoch may have other batches, from another loader."""
    return bool(trainer.reload_dataloaders_every_n_epochs)  # type: ignore[attr-defined]
