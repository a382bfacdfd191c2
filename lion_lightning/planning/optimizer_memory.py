"""Optimizer state and temporaries of an optimizer step, measured by a step on fake tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lion_lightning.errors import first_line
from lion_lightning.planning.memory_counter import MemoryCounter, size_of

Factory = Callable[[Any], Optimizer]
"""From parameter groups to an optimizer."""

SAMPLE = (1024, 1024)
"""Shape of the weight on which an optimizer is tried that will not step without values."""


def step_memory(make: Factory, shapes: Sequence[tuple[torch.Size, torch.dtype]], foreach: bool) -> Counter[str]:
    """Bytes of an optimizer step: temporaries (``activations``), ``state``, and weights (``trained``).

    Of an optimizer that will not step without values they are those of one weight of SAMPLE, and nothing comes and
    goes: kernels outside of PyTorch work in place.

    Args:
        make: Makes the optimizer.
        shapes: Of the weights, each with its dtype.
        foreach: True to update all weights at once where it has the choice, PyTorch's default on GPUs.

    Raises:
        ValueError: The optimizer does not step on a CPU at all.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return _stepped(make, [torch.zeros(shape, dtype=dtype) for shape, dtype in shapes], foreach)
    except Exception:  # kernels that need values fail in all kinds of ways; a small real weight has some
        pass
    try:
        found = _stepped(make, [torch.zeros(SAMPLE, dtype=shapes[0][1])], foreach=False)
    except Exception as error:
        reason = first_line(error)
        raise ValueError(
            f"model.optimizer: it does not step on a CPU ({reason}), so its state cannot be counted; plan with "
            "--model.init_args.optimizer torch.optim.AdamW"
        ) from error
    return Counter(state=found["state"], trained=found["trained"])


def _stepped(make: Factory, values: Sequence[Tensor], foreach: bool) -> Counter[str]:
    """Step twice: the first makes the state, the second tells what comes and goes."""
    trained = [nn.Parameter(value) for value in values]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = make([{"params": trained}])
    for group in optimizer.param_groups:
        if foreach and not group.get("fused") and group.get("foreach", False) is None:
            group["foreach"] = True
    optimizer.step()
    state: list[Tensor] = []
    for entries in optimizer.state.values():
        state += [value for value in entries.values() if isinstance(value, Tensor)]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    with MemoryCounter((*trained, *gradients, *state)) as counter, counter.at("step"):
        optimizer.step()
    return Counter(
        activations=counter.peaks["step"].total(),
        state=size_of(value for value in state if value.dim() > 0),  # step counters are scalars
        trained=size_of(trained),
    )
