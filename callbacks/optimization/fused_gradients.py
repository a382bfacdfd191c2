"""Gradients that step their parameters within the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lion_lightning.distributed.replicas import sum_over_replicas
from lion_lightning.errors import first_line
from lion_lightning.models.weights.dtensor import to_local
from lion_lightning.modules.optimization.gradients import StepGradients


class FusedGradients(StepGradients):
    """Gradients that each step their parameter within the backward pass, and are freed.

    Under FSDP2 that is when a gradient was reduced over the ranks, and this one's shard of it is there.

    Args:
        optimizer: Steps one parameter at a time, each by its own state.
        strategy: The trainer's, for sums over ranks.
        clip_norm: Largest norm of the gradient of all parameters; None to leave it.
        clip_value: Largest size of each number of the gradient; None to leave them.
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
        gradient = to_local(parameter.grad)
        norm = torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
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
