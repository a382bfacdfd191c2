"""This rank's piece of a tensor that is split by rows over ranks (a DTensor of FSDP2), or all of a whole one."""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def is_sharded(module: nn.Module) -> bool:
    """Whether this rank holds only pieces of a module's weights."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def reshard(module: nn.Module) -> None:
    """Let go of the embedding and the head, which a sharded model keeps whole after a forward without a backward."""
    if isinstance(module, FSDPModule):
        module.reshard()


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: a view of its rows, or the tensor itself where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; ranks that hold pieces of it must all call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def rows_held(tensor: Tensor) -> range:
    """Which rows of a tensor this rank holds.

    Args:
        tensor: Whole, or split by rows over a mesh of one dimension.
    """
    if not isinstance(tensor, DTensor):
        return range(tensor.shape[0])
    mesh, rows = tensor.device_mesh, tensor.shape[0]
    most = ceil(rows / mesh.size())
    start = min(mesh.get_local_rank() * most, rows)
    return range(start, min(start + most, rows))


@torch.no_grad()
def materialise(parameter: nn.Parameter, device: torch.device) -> None:
    """Give a sharded parameter on the meta device memory for this rank's rows; what they hold is not defined yet.

    The parameter stays the same object, so that ties between modules last.

    Args:
        parameter: Changed in place.
        device: Where its rows go.
    """
    assert isinstance(parameter, DTensor)
    rows = torch.empty(parameter.to_local().shape, dtype=parameter.dtype, device=device)
    whole = DTensor.from_local(
        rows,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    swap: Any = torch.utils.swap_tensors
    swap(parameter, nn.Parameter(whole, requires_grad=parameter.requires_grad))
