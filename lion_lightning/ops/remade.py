"""Inputs of linear layers that are made again in the backward pass, from what is kept anyway.

Whoever makes a tensor cheaply gives it a recipe (:func:`with_recipe`). A linear layer that gets the tensor, or a view
of all of it, keeps the recipe's sources for its weight's gradient, and not the tensor itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear
from typing_extensions import override


class Recipe(NamedTuple):
    """How a tensor can be made again, to the bit.

    Attributes:
        make: From the sources to the tensor, contiguous.
        sources: What something else keeps for the backward pass too.
        version: Of the tensor when it was made: one that was changed in place is not what the recipe gives.
    """

    make: Callable[..., Tensor]
    sources: tuple[Tensor, ...]
    version: int


def with_recipe(tensor: Tensor, make: Callable[..., Tensor], *sources: Tensor) -> Tensor:
    """The tensor, of which linear layers need keep nothing.

    Args:
        tensor: What ``make(*sources)`` has given.
        make: Makes it again, without a gradient.
        *sources: What from.
    """
    if torch.is_grad_enabled():
        recipe = Recipe(make, tuple(source.detach() for source in sources), tensor._version)
        tensor.recipe = recipe  # type: ignore[attr-defined]
    return tensor


def linear_forward(module: Any, input: Tensor) -> Tensor:
    """``nn.Linear.forward``, which keeps the sources of an input that has a recipe.

    Under autocast, a copy of the input in half precision is what the layer needs: then it is as it always was.

    Args:
        module: The layer.
        input: ``(..., in_features)``.
    """
    recipe = _recipe(input) if torch.is_grad_enabled() and module.weight.requires_grad else None
    # How a DTensor is multiplied is its own affair.
    if recipe is None or isinstance(module.weight, DTensor) or torch.is_autocast_enabled(input.device.type):
        return linear(input, module.weight, module.bias)
    result: Tensor = _Linear.apply(input, module.weight, module.bias, recipe)  # type: ignore[no-untyped-call]
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe) -> Tensor:
        """``hidden @ weight.T + bias``, for which the sources of ``hidden`` are kept."""
        ctx.make = recipe.make
        ctx.save_for_backward(weight, *recipe.sources)
        return linear(hidden, weight, bias)

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        """Gradients of input, weight and bias; the input is made again for the weight's."""
        weight, *sources = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        grad_hidden = gradient @ weight if ctx.needs_input_grad[0] else None
        grad_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return grad_hidden, rows.T @ ctx.make(*sources).view(len(rows), -1), grad_bias, None


def _recipe(tensor: Tensor) -> Recipe | None:
    """The recipe of a tensor, or of what it is a view of, if it is all of that in the same order."""
    root = tensor if tensor._base is None else tensor._base
    recipe: Recipe | None = getattr(root, "recipe", None)
    whole = tensor.numel() == root.numel() and tensor.is_contiguous() and root.is_contiguous()
    return recipe if recipe is not None and whole and recipe.version == root._version else None
