"""Sharded tensors: the DTensors of FSDP2 and tensor parallelism, and FSDPStrategy's flattened parameters."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

_WRAPPER = "_fsdp_wrapped_module."


def is_sharded(module: nn.Module) -> bool:
    """True if this rank holds only shards of a module's weights."""
    if any(isinstance(part, FullyShardedDataParallel) for part in module.modules()):
        return True
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def reshard(module: nn.Module) -> None:
    """Free the root's full weights (embedding, head), which FSDP2 keeps after a forward without a backward."""
    if isinstance(module, FSDPModule):
        module.reshard()


def to_local(tensor: Tensor) -> Tensor:
    """This rank's shard, a view; a tensor that is not sharded is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def to_full(tensor: Tensor) -> Tensor:
    """The full tensor; all ranks that share it must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def broadcast_parameters(module: nn.Module) -> None:
    """Set the weights of all ranks to those of the first. Weights on the meta device are skipped.

    Args:
        module: Not sharded, changed in place.
    """
    for parameter in module.parameters():
        if not parameter.is_meta:
            dist.broadcast(parameter.data, src=0)


@torch.no_grad()
def full_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Full parameters, one at a time in any order, by the names that they have in an unsharded module.

    Args:
        module: Sharded or not. Ranks that share it must all iterate to the end; copy what is kept.
    """
    units = {name: unit for name, unit in module.named_modules() if isinstance(unit, FullyShardedDataParallel)}
    if not units:
        for name, parameter in module.named_parameters():
            yield name, to_full(parameter)
    for prefix, unit in units.items():
        with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
            for name, parameter in unit.module.named_parameters():
                if _WRAPPER not in name:  # else it belongs to a unit within this one
                    yield unwrapped(f"{prefix}.{name}").removeprefix("."), parameter.detach()


def unwrapped(name: str) -> str:
    """A parameter's name without the wrappers of FSDPStrategy."""
    return name.replace(_WRAPPER, "").replace("_checkpoint_wrapped_module.", "")


def local_ranges(tensor: Tensor) -> tuple[range, ...]:
    """The part of each dimension that this rank holds; all of it unless the tensor is sharded."""
    held = [range(size) for size in tensor.shape]
    if isinstance(tensor, DTensor):
        mesh = tensor.device_mesh
        for number in reversed(range(mesh.ndim)):  # FSDP2, the first, splits what tensor parallelism leaves it
            placement: Any = tensor.placements[number]
            if not placement.is_replicate():
                size = ceil(len(held[placement.dim]) / mesh.size(number))
                start = mesh.get_local_rank(number) * size
                held[placement.dim] = held[placement.dim][start : start + size]
    return tuple(held)


def local_index(tensor: Tensor) -> tuple[slice, ...]:
    """The part that this rank holds, as an index into the full tensor."""
    return tuple(slice(each.start, each.stop) for each in local_ranges(tensor))


@torch.no_grad()
def materialize(parameter: nn.Parameter, device: torch.device) -> None:
    """Allocate this rank's part of a sharded parameter on the meta device; their values are undefined.

    The parameter stays the same object, so that tied weights stay tied.
    """
    assert isinstance(parameter, DTensor)
    full = DTensor.from_local(
        torch.empty(parameter.to_local().shape, dtype=parameter.dtype, device=device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    swap: Any = torch.utils.swap_tensors
    swap(parameter, nn.Parameter(full, requires_grad=parameter.requires_grad))
