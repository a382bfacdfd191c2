"""Checks of weights as they are loaded: missing, unexpected and misshapen tensors, and values that are not finite."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lion_lightning.models.weights.dtensor import to_local


class WrongWeightsError(ValueError):
    """Weights that do not belong to the model, or are not finite."""


class HeadChange(NamedTuple):
    """Weights in which a model and the files that it is built from differ, since it gets another head.

    Attributes:
        new: Names of the model's that the files lack; they start at random.
        unused: Names in the files that the model does not have.
    """

    new: frozenset[str] = frozenset()
    unused: frozenset[str] = frozenset()


SAME_HEAD = HeadChange()
"""Of a model with all the weights in its files."""


def load_complete(load: Callable[..., Any], source: str, head: HeadChange = SAME_HEAD, **options: Any) -> Any:
    """Load a model, and require that its files hold exactly its tensors, but for those that transformers ignores."""
    with _without_load_report():
        model, info = load(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    missing, unexpected = {*info["missing_keys"]} - head.new, {*info["unexpected_keys"]} - head.unused
    require_matching(f"{source}: its", missing, unexpected, info["mismatched_keys"])
    return model


def require_matching(
    whose: str,
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Collection[tuple[str, Any, Any]] = (),
) -> None:
    """Refuse weights that do not match the model.

    Args:
        whose: Start of the message, e.g. ``its``.
        missing: Tensors of the model that are not in the files.
        unexpected: Tensors in the files that are not in the model.
        mismatched: Name of each tensor of another shape, with its shape in the files and in the model.
    """
    shapes = [f"{name} (stored {list(stored)}, needed {list(needed)})" for name, stored, needed in mismatched]
    faults = []
    for fault, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            faults.append(f"{fault} {', '.join(sorted(names)[:3])}{more}")
    if faults:
        raise WrongWeightsError(
            f"{whose} weights do not fit the model: {'; '.join(faults)}; config and weights are of two models, or a "
            "file was lost"
        )


def require_finite(source: str, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
    """Refuse weights that are not finite, on all ranks if they are sharded.

    Args:
        source: What they are of, for the message.
        tensors: By name, in the same order on all ranks.

    Raises:
        WrongWeightsError: A weight holds NaN or an infinity; the message names the first.
    """
    named = list(tensors.items() if isinstance(tensors, Mapping) else tensors)
    first, device = len(named), None
    for index, (_, tensor) in enumerate(named):
        device = tensor.device if isinstance(tensor, DTensor) else device
        if index < first and not _is_finite(to_local(tensor)):
            first = index
    if device is not None:  # all ranks must raise over the same tensor, or some would wait for the others
        lowest = torch.tensor(first, device=device)
        dist.all_reduce(lowest, dist.ReduceOp.MIN)
        first = int(lowest)
    if first < len(named):
        name, tensor = named[first]
        values = to_local(tensor).float()
        kind = "NaN" if bool(values.isnan().any()) or not bool(values.isinf().any()) else "an infinity"
        raise WrongWeightsError(
            f"{source}: {name} holds {kind}, so the model computes nothing; training has diverged, or the file is "
            "broken: take an earlier checkpoint, and train with a lower learning rate"
        )


def all_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Floating-point parameters and buffers by name, but for those on the meta device."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not tensor.is_meta:
            yield name, tensor.detach()


def _is_finite(tensor: Tensor) -> bool:
    """One pass without a copy: NaN anywhere makes both ends of the range NaN."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    if tensor.element_size() == 1:  # torch does not order float8
        tensor = tensor.float()
    low, high = torch.aminmax(tensor)
    return bool(low.isfinite() & high.isfinite())


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Suppress the table that transformers logs: :func:`require_matching` says it in one line."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
