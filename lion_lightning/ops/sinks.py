"""Attention sinks as one more key, so that every kernel runs them, with the gradient of each sink.

A head with a sink ``s`` divides by ``exp(s)`` more than the sum over its keys (GPT-OSS; StreamingLLM, arXiv 2309.17453,
has them as tokens). That is one more key with a value of zero whose score is ``s``: queries and keys get columns of
their own for it, in which a query holds ``s`` and only that key a one. The key stands in front, where causal masks show
it to every query; a sliding window would hide it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

COLUMNS = 8
"""By so many the head size grows: kernels want multiples of 8."""


def sinks_as_key(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Inputs of attention without sinks that gives the same, in the first columns of its output.

    Args:
        query: ``(..., heads, queries, size)``.
        key: ``(..., key heads, keys, size)``.
        value: Like ``key``.
        sinks: ``(heads,)`` scores.
        scale: Factor on the other scores; None for one over the root of the size.

    Returns:
        Query, key and value, each with ``COLUMNS`` more columns, key and value with one more key in front; and the
        scale.
    """
    assert sinks is not None
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    column = (sinks / scale).to(query.dtype)[:, None, None].expand(*query.shape[:-1], 1)
    query = torch.cat([query, pad(column, (0, COLUMNS - 1))], dim=-1)
    key, value = (pad(tensor, (0, COLUMNS, 1, 0)) for tensor in (key, value))
    key[..., 0, -COLUMNS] = 1.0
    return query, key, value, scale
