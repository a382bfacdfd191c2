"""Full weights of a sharded policy: gathered a tensor at a time, or all at once for generation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from lion_lightning.models.packing.model import PackedModel
from lion_lightning.models.quantization import dequantized, is_quantized
from lion_lightning.models.weights.dtensor import to_full
from lion_lightning.types import PackedBatch, Segment


@contextmanager
def unsharded(policy: PackedModel) -> Iterator[None]:
    """Hold the full weights for a while, so that ranks may run different numbers of forwards without waiting.

    Args:
        policy: All ranks must call this together if it is sharded.
    """
    units = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    if units:  # FSDP2 takes the first module that runs for its root, and generation skips the policy's own forward
        zeros = torch.zeros(1, dtype=torch.int64)
        row = PackedBatch(zeros.repeat(2), torch.arange(2), (Segment(0, 2),), zeros, zeros, zeros)  # 2 tokens, 1 target
        policy(row.to(next(policy.parameters()).device))
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        with unflattened(policy):
            yield
    finally:
        for number, unit in enumerate(units):  # unit 0 is the root, which stays unsharded from forward to backward
            unit.set_reshard_after_forward(number > 0, recurse=False)
            unit.reshard()


@contextmanager
def unflattened(policy: PackedModel) -> Iterator[None]:
    """Give weights that FSDPStrategy has flattened their shapes and names back; this gathers them.

    Weights sharded by FSDP2 keep shape and name, and stay sharded.

    Args:
        policy: All ranks must call this together if it is sharded.
    """
    units: list[tuple[nn.Module, str, FullyShardedDataParallel]] = []
    for parent in policy.modules():
        for name, child in parent.named_children():
            if isinstance(child, FullyShardedDataParallel):
                units.append((parent, name, child))
    if not units and not isinstance(policy, FullyShardedDataParallel):
        yield
        return
    with FullyShardedDataParallel.summon_full_params(policy, writeback=False):
        for parent, name, unit in units:
            parent._modules[name] = unit.module
        try:
            yield
        finally:
            for parent, name, unit in units:
                parent._modules[name] = unit


def full_tensors(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Gather tensors one at a time; none is kept here.

    Where any is sharded, every rank must iterate to the end (:func:`~lion_lightning.ops.logprobs.to_the_end`).

    Args:
        named: Tensors by name, sharded or not, in the same order on every rank.
    """
    for name, tensor in named:
        yield name, to_full(tensor.detach())


def full_weights(model: nn.Module, plain_layer: Callable[[nn.Module], nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Full weights by the names that they have without adapters, 4-bit ones dequantized; see :func:`full_tensors`.

    Args:
        model: With or without peft's adapters; it is not changed.
        plain_layer: Turns an adapted layer into a plain one: :func:`merged_layer` or :func:`base_layer`.
    """
    plain: dict[str, Callable[[], nn.Module]] = {}  # makes the layer that stands for one of the model's
    for name, layer in model.named_modules():
        if is_quantized(layer):
            plain[name] = partial(dequantized, layer)
    for name, layer in peft_layers(model).items():
        plain[name] = partial(plain_layer, layer)
    done: set[str] = set()
    for name, tensor in model.state_dict().items():
        # The outermost module around this tensor that has to be replaced.
        outer = next((path for path in accumulate(name.split("."), "{}.{}".format) if path in plain), None)
        if outer is None:
            yield from full_tensors([(name, tensor)])
        elif outer not in done:
            done.add(outer)
            for own, weight in full_tensors(plain[outer]().state_dict().items()):
                yield f"{outer}.{own}", weight


def peft_layers(model: nn.Module) -> dict[str, Any]:
    """The layers of a model that peft has wrapped, by name."""
    if not hasattr(model, "peft_config"):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    wrappers = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return {name: module for name, module in model.named_modules() if isinstance(module, wrappers)}


def base_layer(layer: Any) -> nn.Module:
    """The layer inside of peft's wrapper, dequantized."""
    return dequantized(_wrapped(layer))


def _wrapped(layer: Any) -> nn.Module:
    inner: nn.Module = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer.original_module
    return inner


@torch.no_grad()
def merged_layer(layer: Any) -> nn.Module:
    """A layer with its adapters merged, or the copy of it that was trained in full.

    Args:
        layer: One of :func:`peft_layers`; it is not changed. Ranks that share it must all call this.
    """
    if hasattr(layer, "modules_to_save"):
        trained: nn.Module = layer.modules_to_save[layer.active_adapters[0]]
        return trained
    if is_quantized(_wrapped(layer)):  # peft would round the merged weight to 4 bits again
        plain: Any = base_layer(layer)
        for adapter in layer.active_adapters:
            plain.weight += layer.get_delta_weight(adapter)
        return plain  # type: ignore[no-any-return]
    # A copy with full weights: merging in place and unmerging would leave rounding errors in the weights.
    memo: dict[int, Any] = {id(p): nn.Parameter(to_full(p.detach()).clone(), False) for p in layer.parameters()}
    memo |= {id(buffer): to_full(buffer).clone() for buffer in layer.buffers()}
    copy: Any = deepcopy(layer, memo)
    for part in copy.modules():
        vars(part).pop("forward", None)  # a bound forward would keep the copy alive until the garbage collector runs
    if hasattr(copy, "unload_and_optionally_merge_module"):
        return copy.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)  # type: ignore[no-any-return]
    copy.merge()
    return base_layer(copy)
