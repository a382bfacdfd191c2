"""Tensor parallelism by a model's own plan in transformers: ranks of a group hold parts of each layer's weights.

They run the same rows: an activation between layers is the same plain tensor on all of them, and within attention or an
MLP each has its own heads or features. A ``colwise`` layer holds some rows of its weight, ``y_i = x W_i^T``; the
``rowwise`` one behind it holds columns, and the outputs are added up: ``y = sum_i x_i W_i^T``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate
from transformers import PreTrainedModel

from lion_lightning.models.embeddings import output_head, vocabulary_rows

SPLIT = ("colwise", "colwise_gather_output", "embedding_rowwise", "rowwise", "rowwise_split_input")
"""Styles of transformers' plans that split a layer's weight over the ranks."""

PARTIAL = "replicated_with_grad_allreduce"
"""The style of a layer with a full weight that sees a part of the heads: its gradient is summed over the ranks."""


def split_layers(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Split a model's layers in place; all its weights become tensors on the mesh, split or the same on every rank.

    Args:
        model: Without adapters, the same on every rank; weights may be on the meta device.
        mesh: The ranks of a group, one dimension.

    Raises:
        ValueError: The model has no plan that is known here, or sizes that the ranks do not divide.
    """
    plan = _plan(model)
    _require_even(model, mesh.size())
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(id(parameter), []).append((module, name))
    _apply(model, mesh, {name: style for name, style in plan.items() if style in SPLIT})
    for path, module in model.named_modules():
        _replicate(module, mesh, Partial() if plan.get(_pattern(path)) == PARTIAL else Replicate())
    for (first, name), *others in owners.values():
        for module, other in others:  # tied weights were split one by one
            module._parameters[other] = first._parameters[name]


def _plan(model: PreTrainedModel) -> dict[str, str]:
    """Style of each layer by its name, with ``*`` for numbers."""
    plan: dict[str, str] = dict(model.tp_plan)
    kind = model.config.get_text_config().model_type
    if "rowwise" not in plan.values():
        raise ValueError(f"tensor_parallel_size: transformers has no plan for {kind} models; leave it at 1")
    if unknown := sorted({*plan.values()} - {*SPLIT, PARTIAL}):
        raise ValueError(
            f"tensor_parallel_size: transformers' plan for {kind} models splits layers in ways that are not supported "
            f"here ({', '.join(unknown)}); leave it at 1"
        )
    embedding, head = model.get_input_embeddings(), output_head(model)
    if head is not None and head.weight is embedding.weight:  # both over the vocabulary, whatever the embedding's name
        names = {module: _pattern(path) for path, module in model.named_modules()}
        plan |= {names[embedding]: "embedding_rowwise", names[head]: "colwise_gather_output"}
    return plan


def _pattern(path: str) -> str:
    """A module's name as in plans."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", path)


def _require_even(model: PreTrainedModel, ranks: int) -> None:
    config = model.config.get_text_config()
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    sizes = {name: getattr(config, name, None) for name in names} | {"rows of the embedding": vocabulary_rows(model)}
    if uneven := [f"{name} ({size})" for name, size in sizes.items() if isinstance(size, int) and size % ranks]:
        raise ValueError(
            f"tensor_parallel_size: {ranks} ranks do not divide the model's {', '.join(uneven)}; choose another number"
        )


def _apply(model: Any, mesh: DeviceMesh, plan: dict[str, str]) -> None:
    """Split weights and wrap forwards, by transformers: no public API of it, seen in 5.19; a test pins the version."""
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    model.tp_plan = plan  # no argument: 5.16 and 5.17 have none for it
    apply_tensor_parallelism(model, mesh)  # type: ignore[no-untyped-call]


def _replicate(module: nn.Module, mesh: DeviceMesh, gradient: Placement) -> None:
    """Make the plain weights of a module tensors on the mesh, which its forward sees as plain ones."""
    own = {name: p for name, p in module._parameters.items() if p is not None and not isinstance(p, DTensor)}
    for name, parameter in own.items():
        full = DTensor.from_local(parameter.detach(), mesh, [Replicate()], run_check=False)
        module._parameters[name] = nn.Parameter(full, requires_grad=parameter.requires_grad)
    if own:
        module.forward = partial(_run_locally, module, module.forward, tuple(own), gradient)


def _run_locally(
    module: nn.Module, forward: Callable[..., Any], names: Sequence[str], gradient: Placement, *args: Any, **kwargs: Any
) -> Any:
    shared: dict[str, Any] = {name: module._parameters[name] for name in names}
    module._parameters.update({name: p.to_local(grad_placements=[gradient]) for name, p in shared.items()})
    try:
        return forward(*args, **kwargs)
    finally:
        module._parameters.update(shared)
