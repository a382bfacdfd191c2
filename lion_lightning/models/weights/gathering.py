"""Whole weights out of sharded ones, a tensor at a time: the whole model is never held for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from lion_lightning.models.quantization import dequantized, is_quantized
from lion_lightning.models.weights.dtensor import to_full

Named = Iterable[tuple[str, Tensor]]
"""Tensors with their names."""


def full_tensors(named: nn.Module | Named) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors, each gathered from all ranks when its turn comes, and kept by nobody here.

    Where anything is sharded, every rank must go through to the end
    (:func:`~lion_lightning.ops.logprobs.to_the_end`).

    Args:
        named: Sharded or whole tensors by name, in the same order on every rank; of a module, its state.
    """
    items = named.state_dict().items() if isinstance(named, nn.Module) else named
    for name, tensor in items:
        yield name, to_full(tensor.detach())


def plain_weights(model: nn.Module, unwrap: Callable[[nn.Module], nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Whole weights of a model, under the names that they have without adapters; see :func:`full_tensors`.

    Those in 4 bits come as the values that they stand for.

    Args:
        model: With or without peft's adapters in it. It is left as it is.
        unwrap: Makes a plain layer of one that peft has wrapped: :func:`merged` or :func:`bare`.
    """
    wrapped, done = _layers(model, unwrap), set[str]()
    for name, tensor in model.state_dict().items():
        layer = next((path for path in accumulate(name.split("."), "{}.{}".format) if path in wrapped), None)
        if layer is None:
            yield from full_tensors([(name, tensor)])
        elif layer not in done:
            done.add(layer)
            yield from ((f"{layer}.{own}", weight) for own, weight in full_tensors(wrapped[layer]()))


def _layers(model: nn.Module, unwrap: Callable[[nn.Module], nn.Module]) -> dict[str, Callable[[], nn.Module]]:
    """How to make those layers plain that are not, by name."""
    plain: dict[str, Callable[[], nn.Module]] = {
        name: partial(dequantized, layer) for name, layer in model.named_modules() if is_quantized(layer)
    }
    return plain | {name: partial(unwrap, layer) for name, layer in peft_layers(model).items()}


def peft_layers(model: nn.Module) -> dict[str, Any]:
    """What peft has put around layers of a model, by the layers' names."""
    if not hasattr(model, "peft_config"):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def bare(layer: Any) -> nn.Module:
    """The layer that peft has wrapped, as it was before."""
    return dequantized(_inner(layer))


def _inner(layer: Any) -> nn.Module:
    inner: nn.Module = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer.original_module
    return inner


def merged(layer: Any) -> nn.Module:
    """A layer with peft's changes in it: what was trained in its place, or a merged copy.

    Args:
        layer: One of :func:`peft_layers`. It is left as it is; ranks that hold pieces of it must all call this.
    """
    if hasattr(layer, "modules_to_save"):
        inner: nn.Module = layer.modules_to_save[layer.active_adapters[0]]
        return inner
    if is_quantized(_inner(layer)):
        return _onto_values(layer)
    copy: Any = _whole_copy(layer)
    if hasattr(copy, "unload_and_optionally_merge_module"):
        return copy.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)  # type: ignore[no-any-return]
    copy.merge()
    return bare(copy)


@torch.no_grad()
def _onto_values(layer: Any) -> nn.Module:
    """Peft itself would round what it has merged to 4 bits again."""
    plain: Any = bare(layer)
    for adapter in layer.active_adapters:
        plain.weight += layer.get_delta_weight(adapter)
    return plain  # type: ignore[no-any-return]


@torch.no_grad()
def _whole_copy(module: nn.Module) -> nn.Module:
    """A copy with whole weights of its own: merging in place and taking it back would leave rounding in the weights."""
    memo: dict[int, Any] = {id(p): nn.Parameter(to_full(p.detach()).clone(), False) for p in module.parameters()}
    memo |= {id(buffer): to_full(buffer).clone() for buffer in module.buffers()}
    copy = deepcopy(module, memo)
    for part in copy.modules():
        vars(part).pop("forward", None)  # one that is bound to its module would keep it until somebody looks for cycles
    return copy
