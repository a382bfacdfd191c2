"""Parameters stepped within the backward pass, each as soon as its gradient is there."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy
from typing_extensions import override

from lion_lightning.callbacks.optimization.fused_gradients import FusedGradients, require_stepped_alone
from lion_lightning.distributed.replicas import tensor_parallel_size
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.modules.optimization.gradients import StepGradients
from lion_lightning.one_lightning import LionCallback


class FusedBackward(LionCallback):
    """Steps each parameter as soon as the backward pass has its gradient, which is then freed.

    So the gradients of all parameters are never in memory at once. This is LOMO (arXiv 2306.09782) where the
    optimizer is ``torch.optim.SGD``, AdaLomo (arXiv 2310.10195) with :class:`~lion_lightning.optim.AdaLomo`,
    and it serves any optimizer that steps a parameter by its own gradient and state. Schedules, checkpoints and logged
    metrics stay as they are. For one device, or FSDP2.

    Weights are those of a step after the backward pass, but for rounding: the loss is divided by the step's items
    where otherwise gradients are. No gradient is left for ``on_before_optimizer_step`` to look at.

    Args:
        clip_norm: Largest norm of the gradient of all parameters, as ``trainer.gradient_clip_val``; None to leave it.
            The norm is known only after a backward pass, so there is a second one through the same graph: activations
            are held through both, and a step takes longer.
        clip_value: Largest size of each number of the gradient, cut off before the norm is clipped (which is of the
            gradient as it was); None to leave them.

    Raises:
        ValueError: If an argument is not above 0.
        MisconfigurationException: When the fit starts, with a trainer, module or optimizer that cannot be stepped so.
    """

    def __init__(self, clip_norm: float | None = None, clip_value: float | None = None) -> None:
        for name, value in {"clip_norm": clip_norm, "clip_value": clip_value}.items():
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"FusedBackward.{name} is {value}; give a number above 0, or leave it out")
        self.clip_norm = clip_norm
        self.clip_value = clip_value

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            refuse_partial_gradients(trainer)
            refuse_later_changes(trainer)
            require_own_module(pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the gradients over, now that a checkpoint was read."""
        assert isinstance(pl_module, AlignmentModule)
        if isinstance(pl_module.gradients, FusedGradients):
            raise MisconfigurationException(
                "FusedBackward is twice in trainer.callbacks, where each would step the weights; name it once"
            )
        (optimizer,) = trainer.optimizers  # Lightning wants manual optimization for more, which was refused
        require_stepped_alone(optimizer)
        pl_module.gradients = FusedGradients(optimizer, trainer.strategy, self.clip_norm, self.clip_value)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hand_back(pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._hand_back(pl_module)

    def _hand_back(self, module: LightningModule) -> None:
        if isinstance(module, AlignmentModule) and isinstance(module.gradients, FusedGradients):
            module.gradients.release()
            module.gradients = StepGradients()


def steps_within_backward(callbacks: Iterable[object]) -> bool:
    """True if one of a trainer's callbacks steps the parameters within the backward pass."""
    return any(isinstance(callback, FusedBackward) for callback in callbacks)


def refuse_partial_gradients(trainer: Trainer) -> None:
    """Refuse strategies and precisions under which a gradient that is there is not yet the step's."""
    strategy, name = trainer.strategy, type(trainer.strategy).__name__
    if not isinstance(strategy, SingleDeviceStrategy | ModelParallelStrategy):
        raise MisconfigurationException(
            f"FusedBackward: under {name} a gradient is not yet summed over the ranks when its parameter would be "
            "stepped, so that ranks would drift apart; use one device, or trainer.strategy: "
            "lion_lightning.strategies.FSDP2Strategy"
        )
    if (size := tensor_parallel_size(strategy)) > 1:
        raise MisconfigurationException(
            f"FusedBackward: {name}.tensor_parallel_size is {size}, which it does not know of; set it to 1, so that "
            "FSDP2 splits the model over all devices"
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise MisconfigurationException(
            f"FusedBackward: under trainer.precision: {trainer.precision} a step whose gradient overflows is left out, "
            "and here it would be half made; set trainer.precision: bf16-mixed or 32-true"
        )


def refuse_later_changes(trainer: Trainer) -> None:
    """Refuse steps that need all gradients at once: of several micro-batches, or clipped by the trainer."""
    schedules = [one for one in trainer.callbacks if isinstance(one, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
    most = max([trainer.accumulate_grad_batches, *(max(one.scheduling.values()) for one in schedules)])
    if most > 1:
        raise MisconfigurationException(
            f"FusedBackward: trainer.accumulate_grad_batches is {most}, and gradients that are let go cannot be added "
            "up; set it to 1, and raise data.batch_size (with policy.recompute, where that does not fit)"
        )
    if trainer.gradient_clip_val:
        raise MisconfigurationException(
            f"FusedBackward: trainer.gradient_clip_val is {trainer.gradient_clip_val}, and the trainer finds no "
            "gradient to clip; take it out, and set the callback's clip_norm (or clip_value)"
        )


def require_own_module(module: LightningModule) -> None:
    """Refuse modules that make their steps otherwise, or change gradients after the backward pass."""
    if not isinstance(module, AlignmentModule) or not module.automatic_optimization:
        raise MisconfigurationException(
            f"FusedBackward: {type(module).__name__} is no AlignmentModule of lion_lightning with automatic "
            "optimization and one optimizer, whose loss is divided by the step's items before the backward pass; take "
            "the callback out of trainer.callbacks"
        )
    if module.policy_spec.trainable_rows is not None:
        raise MisconfigurationException(
            "FusedBackward: policy.trainable_rows masks the gradient after the backward pass, when the rows would have "
            "been stepped already; take one of them out"
        )
