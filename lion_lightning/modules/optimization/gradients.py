"""How a step's gradients are made, scaled and measured; they may be sharded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy, Strategy
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from lion_lightning.models.weights.dtensor import to_full, to_local


@torch.no_grad()
def scale_gradients(module: nn.Module, factor: float) -> None:
    """Multiply all gradients, or this rank's shards of them: on a GPU in a few launches, not one per parameter."""
    gradients = [to_local(p.grad) for p in module.parameters() if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)


def gradient_norm(module: nn.Module, strategy: Strategy) -> Tensor:
    """Norm of the gradient of all parameters, over all ranks' shards.

    Args:
        module: After a backward pass.
        strategy: The trainer's; all ranks must call this.
    """
    norm = to_full(get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))
    if not isinstance(strategy, FSDPStrategy):
        return norm
    total: Any = strategy.reduce(norm.to(strategy.root_device) ** 2, reduce_op="sum")  # a flat shard has only its part
    return torch.sqrt(total)


class StepGradients:
    """The gradients of a step: added up over its micro-batches, and scaled once they are all there.

    A callback may put its own in the place of a module's while that trains (its attribute ``gradients``).
    """

    def backward(self, loss: Tensor, scale: Callable[[], float], **options: Any) -> None:
        """Run the backward pass of a micro-batch.

        Args:
            loss: Scalar with a graph.
            scale: Ends the step, and returns what its gradients are to be multiplied by; all ranks call it together.
            options: Of ``Tensor.backward``.
        """
        torch.autograd.backward(loss, **options)

    def finish(self, module: nn.Module, scale: Callable[[], float]) -> None:
        """Scale the gradients after the step's last backward pass.

        Args:
            module: Their module.
            scale: See :meth:`backward`.
        """
        scale_gradients(module, scale())

    def norm(self, module: nn.Module, strategy: Strategy) -> Tensor:
        """Norm of the step's gradient before clipping; all ranks call this together."""
        return gradient_norm(module, strategy)
