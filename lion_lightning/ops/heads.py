"""Inputs of an attention call on a packed row."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from lion_lightning.ops.layout import RowLayout


class Heads(NamedTuple):
    """Inputs of one attention call.

    Attributes:
        query: ``(heads, tokens, head size)``.
        key: ``(key heads, tokens, head size)``; each key head serves as many query heads as the ratio says.
        value: Like ``key``.
        scale: Factor on the scores; None for one over the root of the head size.
        window: Sliding window, in tokens up to and including the query; None for none.
        softcap: Bound of soft-capped scores; None for none.
        sinks: ``(heads,)`` score of one more key per head, whose value is zero (attention sinks); None for none.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


Attend = Callable[[Heads, RowLayout], Tensor]
"""From heads of a packed row to outputs, ``(heads, tokens, head size)``."""


def with_repeated_keys(heads: Heads) -> Heads:
    """One key head per query head, for kernels and products that know no groups.

    Args:
        heads: Any number of leading dimensions.
    """
    repeats = heads.query.shape[-3] // heads.key.shape[-3]
    if repeats == 1:
        return heads
    key, value = (tensor.repeat_interleave(repeats, dim=-3) for tensor in (heads.key, heads.value))
    return heads._replace(key=key, value=value)
