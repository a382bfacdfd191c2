"""This rank's piece of a tensor that is split by rows over ranks (a DTensor of FSDP2), or all of a whole one."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

_UNIT = "_fsdp_wrapped_module."


def is_sharded(module: nn.Module) -> bool:
    """Whether this rank holds only pieces of a module's weights."""
    if any(isinstance(part, FullyShardedDataParallel) for part in module.modules()):
        return True
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def reshard(module: nn.Module) -> None:
    """Let go of the embedding and the head, which a sharded model keeps whole after a forward without a backward."""
    if isinstance(module, FSDPModule):
        module.reshard()


def to_local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: a view of its rows, or the tensor itself where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def to_full(tensor: Tensor) -> Tensor:
    """All of a tensor; ranks that hold pieces of it must all call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def share(module: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Make the weights of the first rank everybody's. Those on the meta device have none yet.

    Args:
        module: Whole, changed in place.
        group: Whose ranks call this; None for all.
    """
    for parameter in module.parameters():
        if not parameter.is_meta:
            dist.broadcast(parameter.data, group=group, group_src=0)


@torch.no_grad()
def full_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters one at a time, whole, by the names that they have in an unsharded module; no order is promised.

    Args:
        module: Whole or sharded; ranks that share it must all exhaust this, and no tensor is to be kept as it is.
    """
    units = {name: unit for name, unit in module.named_modules() if isinstance(unit, FullyShardedDataParallel)}
    if not units:
        yield from ((name, to_full(parameter)) for name, parameter in module.named_parameters())
    for prefix, unit in units.items():
        with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
            own = ((name, p) for name, p in unit.module.named_parameters() if _UNIT not in name)
            yield from (
                (unwrapped(f"{prefix}.{name}").removeprefix("."), parameter.detach()) for name, parameter in own
            )


def unwrapped(name: str) -> str:
    """A parameter's name without what FSDPStrategy puts around its modules.

    Args:
        name: From ``named_parameters``.
    """
    return name.replace(_UNIT, "").replace("_checkpoint_wrapped_module.", "")


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
def materialize(parameter: nn.Parameter, device: torch.device) -> None:
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
