"""What is wrong with weights is found when they are read: tensors missing or left over, and numbers that are none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lion_lightning.models.weights.dtensor import to_local


class WrongWeightsError(ValueError):
    """Weights that are not those of the model, or no numbers."""


def load_complete(load: Callable[..., Any], source: str, **options: Any) -> Any:
    """Load a model whose files hold each of its tensors, in its shape, and no others.

    Args:
        load: A ``from_pretrained`` of transformers.
        source: Folder or hub id.
        **options: Further arguments of it.

    Raises:
        WrongWeightsError: Tensors are missing, left over or of another shape; the message names some. What transformers
            itself says may be missing or left over is no error.
    """
    with _without_report():
        model, info = load(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    refuse_misfits(f"{source}: its", info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"])
    return model


def refuse_misfits(
    whose: str,
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Collection[tuple[str, Any, Any]] = (),
) -> None:
    """Refuse weights that are not those of the model.

    Args:
        whose: What the message begins with, ``its`` say.
        missing: Tensors of the model that are not in the files.
        unexpected: Tensors in the files that the model has no place for.
        mismatched: Name of each tensor of another shape, with its shape in the files and in the model.

    Raises:
        WrongWeightsError: There are some.
    """
    shapes = [f"{name} (stored {list(there)}, needed {list(here)})" for name, there, here in mismatched]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    faults = [f"{what} {_some(names)}" for what, names in found.items() if names]
    if faults:
        raise WrongWeightsError(
            f"{whose} weights do not fit the model: {'; '.join(faults)}; config and weights are of two models, or a "
            "file was lost"
        )


def require_finite(source: str, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
    """Refuse weights with numbers that are not finite. Where they are sharded, all ranks refuse alike.

    Args:
        source: What they are of, for the message.
        tensors: By name, the same on all ranks.

    Raises:
        WrongWeightsError: Some weight holds NaN or an infinity; the message names the first such.
    """
    named = list(tensors.items() if isinstance(tensors, Mapping) else tensors)
    first = next((place for place, (_, tensor) in enumerate(named) if not _finite(to_local(tensor))), len(named))
    first = _least_of_ranks(first, [tensor for _, tensor in named])
    if first < len(named):
        name, tensor = named[first]
        values = to_local(tensor).float()
        kind = "NaN" if bool(values.isnan().any()) or not bool(values.isinf().any()) else "an infinity"
        raise WrongWeightsError(
            f"{source}: {name} holds {kind}, so the model computes nothing; training has diverged, or the file is "
            "broken: take an earlier checkpoint, and train with a lower learning rate"
        )


def all_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that are numbers in memory, by name.

    Args:
        model: Whole or sharded.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not tensor.is_meta:
            yield name, tensor.detach()


def _finite(tensor: Tensor) -> bool:
    """In one pass and without a copy: both ends of the range are NaN where anything is."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    if tensor.element_size() == 1:  # float8 has no order here
        tensor = tensor.float()
    least, most = torch.aminmax(tensor)
    return bool(least.isfinite() & most.isfinite())


def _least_of_ranks(place: int, tensors: Collection[Tensor]) -> int:
    sharded = next((tensor for tensor in tensors if isinstance(tensor, DTensor)), None)
    if sharded is None:
        return place
    least = torch.tensor(place, device=sharded.device_mesh.device_type)
    dist.all_reduce(least, dist.ReduceOp.MIN, group=sharded.device_mesh.get_group())
    return int(least)


def _some(names: Collection[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def _without_report() -> Iterator[None]:
    """Without the table that transformers logs of what is said in one line here."""
    logger = logging.getLogger("transformers.modeling_utils")

    def other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
