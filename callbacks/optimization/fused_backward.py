"""Parameters stepped within the backward pass, each as soon as its gradient is there."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lion_lightning.distributed.replicas import sum_over_replicas, tensor_parallel_size
from lion_lightning.errors import first_line
from lion_lightning.models.weights.dtensor import to_local
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.modules.optimization.gradients import StepGradients


class FusedBackward(Callback):
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


class FusedGradients(StepGradients):
    """Gradients that each step their parameter within the backward pass, and are freed.

    Under FSDP2 that is when a gradient was reduced over the ranks, and this one's shard of it is there.

    Args:
        optimizer: Steps one parameter at a time, each by its own state.
        strategy: The trainer's, for sums over ranks.
        clip_norm: See :class:`FusedBackward`.
        clip_value: See :class:`FusedBackward`.
    """

    def __init__(
        self, optimizer: Optimizer, strategy: Strategy, clip_norm: float | None, clip_value: float | None
    ) -> None:
        self.optimizer, self.strategy = optimizer, strategy
        self.clip_norm, self.clip_value = clip_norm, clip_value
        self._squares = torch.zeros((), dtype=torch.float64)  # summed over this rank's part of the gradient
        self._factor: Tensor | None = None  # that clips the norm
        self._visits: tuple[Callable[[int, Any], None], ...] = ()  # what is done with a gradient in the present pass
        self._handles = []
        # The optimizer's parameters: those that FSDP2's modules show within a backward pass are gathered ones.
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                self._handles.append(parameter.register_post_accumulate_grad_hook(partial(self._arrive, number)))

    def release(self) -> None:
        """Leave the parameters to others."""
        for handle in self._handles:
            handle.remove()

    @override
    def backward(self, loss: Tensor, scale: Callable[[], float], **options: Any) -> None:
        """Run the backward pass, or both, and step all parameters in it."""
        loss = loss * scale()
        self._squares = torch.zeros((), dtype=torch.float64)
        if self.clip_norm is None:
            self._run(loss, self._measure, self._clip, self._step)
            return
        self._run(loss, self._measure, retain_graph=True)
        self._factor = (self.clip_norm / (self._norm() + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
        self._run(loss, self._clip, self._step)

    @override
    def finish(self, module: nn.Module, scale: Callable[[], float]) -> None:
        """Nothing: the loss was scaled."""

    @override
    def norm(self, module: nn.Module, strategy: Strategy) -> Tensor:
        return self._norm()

    def _run(self, loss: Tensor, *visits: Callable[[int, Any], None], retain_graph: bool = False) -> None:
        self._visits = visits
        torch.autograd.backward(loss, retain_graph=retain_graph)

    @torch.no_grad()
    def _arrive(self, number: int, parameter: Tensor) -> None:
        """Do what is to be done with a gradient, and free it.

        Args:
            number: Of the parameter's group.
            parameter: Has its gradient.
        """
        for visit in self._visits:
            visit(number, parameter)
        parameter.grad = None

    def _measure(self, number: int, parameter: Any) -> None:
        norm = torch.linalg.vector_norm(to_local(parameter.grad), dtype=torch.float32)
        self._squares = self._squares.to(norm.device) + norm.double().square()

    def _clip(self, number: int, parameter: Any) -> None:
        gradient = to_local(parameter.grad)
        if self.clip_value is not None:
            gradient.clamp_(-self.clip_value, self.clip_value)
        if self._factor is not None:
            gradient.mul_(self._factor.to(gradient.device))

    def _step(self, number: int, parameter: Any) -> None:
        step_alone(self.optimizer, self.optimizer.param_groups[number], parameter)

    def _norm(self) -> Tensor:
        squares = self._squares.to(self.strategy.root_device, copy=True)  # the sum over ranks is made in place
        return torch.sqrt(sum_over_replicas(squares, self.strategy)).float()


def step_alone(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    """Let an optimizer step a single parameter.

    Args:
        optimizer: Keeps its state where it is.
        group: The parameter's, with the present rate.
        parameter: With its gradient.

    Returns:
        The group of the parameter alone, as the step left it.
    """
    groups, alone = optimizer.param_groups, {**group, "params": [parameter]}
    optimizer.param_groups = [alone]
    try:
        optimizer.step()
    finally:
        optimizer.param_groups = groups
    return alone


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


def require_stepped_alone(optimizer: Optimizer) -> None:
    """Refuse optimizers that cannot step one parameter by itself, by a step of a dummy parameter."""
    name = type(optimizer).__name__
    for group in optimizer.param_groups:
        before = deepcopy({key: value for key, value in group.items() if key != "params"})
        like = group["params"][0]
        dummy = nn.Parameter(torch.zeros((1,) * like.dim(), dtype=like.dtype, device=like.device))
        dummy.grad = torch.zeros_like(dummy)
        try:
            after = step_alone(optimizer, group, dummy)
        except Exception as error:  # of closures that are missing, or of whatever it expects to find
            raise MisconfigurationException(
                f"FusedBackward: {name} cannot step one parameter alone ({first_line(error)}); set model.optimizer to "
                "one that can, as torch.optim.AdamW, torch.optim.SGD or lion_lightning.optim.AdaLomo"
            ) from error
        finally:
            optimizer.state.pop(dummy, None)
        changed = [key for key in after if key != "params" and (key not in before or before[key] != after[key])]
        if changed:
            raise MisconfigurationException(
                f"FusedBackward: {name} changes {', '.join(changed)} of its parameter group in a step, once for each "
                "parameter here; set model.optimizer to one that keeps its state by parameter, as torch.optim.AdamW"
            )
