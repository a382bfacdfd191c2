"""AdaLomo: Adafactor's factored second moments, without momentum, for steps within the backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.optim import Optimizer
from typing_extensions import override

EPSILON = 1e-30
"""Added to the squares of gradients, so that a row of zeros has a root to divide by."""
MIN_RMS = 1e-3
"""Of a weight, for its step: one that is zero moves too."""


class AdaLomo(Optimizer):
    """AdaLomo (arXiv 2310.10195): each number of a gradient over its estimated size, each step relative to its weight.

    The size of a matrix's gradient is kept as means of squares by row and by column, ``m + n`` numbers for ``m x n``
    weights (as Adafactor, arXiv 1804.04235). With ``t`` the number of the step, ``beta = 1 - t**decay_rate``,
    ``S = g**2 + 1e-30``, and ``RMS`` the root of the mean square of a parameter's numbers:

    - ``r = beta r + (1 - beta) mean(S over columns)``, ``c = beta c + (1 - beta) mean(S over rows)``, and
      ``v = r c / mean(r)``; for a vector ``v = beta v + (1 - beta) S``;
    - ``u = g / sqrt(v)``, then ``u / max(1, RMS(u) / clip_threshold)``;
    - ``rate = lr max(1e-3, RMS(p))``, and ``p = (1 - rate weight_decay) p - rate u``.

    Of tensors with more dimensions the last two are factored. All is computed in fp32 and written back in the weight's
    dtype: of weights in bf16 a step below half of their precision is lost. Sharded weights (DTensors) give what full
    ones give. Under :class:`~lion_lightning.callbacks.optimization.fused_backward.FusedBackward` the gradients are
    never all in memory, as in the paper; without, it steps like any optimizer.

    Args:
        params: Parameters or parameter groups.
        lr: Size of a step, relative to the weight's.
        weight_decay: Share of the weight taken off per unit of the step's size.
        clip_threshold: Largest root mean square of an update of a parameter, before the rate.
        decay_rate: Exponent of the step's number, below 0: the lower, the longer the memory of squares.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
    ) -> None:
        for name, value in {"lr": lr, "weight_decay": weight_decay}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; give a number of at least 0")
        if not 0 < clip_threshold < math.inf:
            raise ValueError(f"clip_threshold is {clip_threshold}; give a number above 0")
        if not -math.inf < decay_rate < 0:
            raise ValueError(f"decay_rate is {decay_rate}; give a number below 0")
        settings = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(params, {**settings, "clip_threshold": clip_threshold, "decay_rate": decay_rate})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    @override
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; it stays fp32, where torch would cast it to the dtype of the weights."""
        super().load_state_dict(state_dict)
        for stored, group in zip(state_dict["param_groups"], self.param_groups, strict=True):
            for number, parameter in zip(stored["params"], group["params"], strict=True):
                for name, value in state_dict["state"].get(number, {}).items():
                    device = value.device if name == "step" else parameter.device
                    self.state[parameter][name] = value.to(device, torch.float32, copy=True)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        gradient, state = parameter.grad.float(), self.state[parameter]  # (..., m, n) or (n,)
        self._update_means(gradient, state, group["decay_rate"])
        if "squares" in state:
            update = gradient * state["squares"].rsqrt()
        else:
            # g / sqrt(r c / mean(r)), root by root: the product of two small numbers would be 0.
            rows = state["rows"].rsqrt() * _mean(state["rows"], -1).sqrt().unsqueeze(-1)  # (..., m)
            update = gradient * rows.unsqueeze(-1)
            update *= state["columns"].rsqrt().unsqueeze(-2)  # (..., 1, n)
        rate = group["lr"] * _rms(parameter).clamp(min=MIN_RMS)
        factor = rate / (_rms(update) / group["clip_threshold"]).clamp(min=1.0)
        weight, change = _local(parameter), _local(update).mul_(factor)
        if group["weight_decay"]:
            change.add_(weight * (rate * group["weight_decay"]))
        weight.sub_(change)

    def _update_means(self, gradient: Tensor, state: dict[str, Any], decay_rate: float) -> None:
        """Update the running means of squares."""
        state["step"] = state.get("step", torch.zeros((), dtype=torch.float32)) + 1
        beta = 1 - state["step"].item() ** decay_rate  # 0 in the first step
        squares = gradient.square().add_(EPSILON)
        vector = gradient.dim() < 2
        means = {"squares": squares} if vector else {"rows": _mean(squares, -1), "columns": _mean(squares, -2)}
        for name, mean in means.items():
            state[name] = beta * state[name] + (1 - beta) * mean if name in state else mean


def _mean(tensor: Tensor, dim: int) -> Tensor:
    """Mean over a dimension, which may be split unevenly over ranks: their sums are added up before the division."""
    total = tensor.sum(dim)
    if isinstance(total, DTensor):
        summed = [Replicate() if isinstance(each, Partial) else each for each in total.placements]
        total = total.redistribute(placements=summed)
    return total / tensor.shape[dim]


def _rms(tensor: Tensor) -> Tensor:
    """Root of the mean square of all numbers, a plain scalar."""
    norm = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm) / math.sqrt(tensor.numel())


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
