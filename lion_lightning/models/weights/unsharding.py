"""A sharded policy held whole for a while: to generate from it, or to read its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from lion_lightning.models.policy import PolicyModel
from lion_lightning.types import PackedBatch, Segment


@contextmanager
def unsharded(policy: PolicyModel) -> Iterator[None]:
    """Hold all weights for as long as it lasts, so that ranks may run unequally many forwards without waiting.

    Args:
        policy: Sharded, in which case all ranks must call this, or whole.
    """
    parts = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    if parts:  # FSDP takes the first module that runs for its root, and generation does not run the whole policy
        policy(_shortest_row().to(next(policy.parameters()).device))
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        with with_shapes(policy):
            yield
    finally:
        for number, part in enumerate(parts):  # the first is the root, which stays whole between forward and backward
            part.set_reshard_after_forward(number > 0, recurse=False)
            part.reshard()


@contextmanager
def with_shapes(policy: PolicyModel) -> Iterator[None]:
    """Give weights that FSDPStrategy has flattened their shapes and names back, for which they are made whole.

    Those that are sharded by FSDP2 have them, and stay as they are.

    Args:
        policy: All ranks must call this, if it is sharded.
    """
    units = [
        (parent, name, child)
        for parent in policy.modules()
        for name, child in parent.named_children()
        if isinstance(child, FullyShardedDataParallel)
    ]
    if not units and not isinstance(policy, FullyShardedDataParallel):
        yield
        return
    with FullyShardedDataParallel.summon_full_params(policy, writeback=False):
        _place((parent, name, unit.module) for parent, name, unit in units)
        try:
            yield
        finally:
            _place(units)


def _place(modules: Iterable[tuple[nn.Module, str, nn.Module]]) -> None:
    for parent, name, module in modules:
        parent._modules[name] = module


def _shortest_row() -> PackedBatch:
    zeros = torch.zeros(1, dtype=torch.int64)
    return PackedBatch(zeros.repeat(2), torch.arange(2), (Segment(0, 2),), zeros, zeros, zeros)
