"""Attention of packed rows by variable-length kernels on GPUs: PyTorch's own, and the ``flash-attn`` package's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lion_lightning.ops.heads import Heads, with_repeated_keys
from lion_lightning.ops.layout import RowLayout, VarlenIndex
from lion_lightning.ops.sinks import sinks_as_key


def attend_varlen(heads: Heads, layout: RowLayout) -> Tensor:
    """PyTorch's own variable-length flash attention (GPU, half precision, torch >= 2.10).

    Raises:
        ValueError: The model needs soft-capped scores, a sliding window before torch 2.11, or one with sinks.
    """
    from torch.nn.attention.varlen import varlen_attn

    if heads.softcap is not None:
        raise ValueError(
            "attention: lion_varlen does not support the soft-capped scores of this model; use lion_sdpa or lion_flash."
        )
    kernel: Callable[..., Any] = varlen_attn

    def attend(heads: Heads, index: VarlenIndex) -> Tensor:
        heads, options = _varlen_options(heads, index.is_causal, accepted_by(kernel))
        output: Tensor = kernel(*_varlen_arguments(heads, index), **options)
        return output

    return _attend_all(heads, layout, attend)


def attend_flash(heads: Heads, layout: RowLayout) -> Tensor:
    """The ``flash-attn`` package's variable-length kernel (GPU, half precision).

    Raises:
        ValueError: The model has a sliding window with sinks.
    """
    from flash_attn import flash_attn_varlen_func

    def attend(heads: Heads, index: VarlenIndex) -> Tensor:
        output: Tensor = flash_attn_varlen_func(
            *_varlen_arguments(heads, index),
            softmax_scale=heads.scale,
            causal=index.is_causal,
            window_size=_window_size(heads, index.is_causal),
            softcap=heads.softcap or 0.0,
        )
        return output

    return _attend_all(heads, layout, attend)


def _attend_all(heads: Heads, layout: RowLayout, attend: Callable[[Heads, VarlenIndex], Tensor]) -> Tensor:
    """Attention of all segments, causal ones by one call of a kernel, bidirectional ones by another."""
    size = heads.value.shape[-1]
    heads, indices = _with_sink_keys(heads, layout)
    outputs = [attend(heads, index) for index in indices]
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)[layout.varlen_order]
    return output.transpose(0, 1)[..., :size]


def _with_sink_keys(heads: Heads, layout: RowLayout) -> tuple[Heads, tuple[VarlenIndex, ...]]:
    """Sinks as a first key of every segment; kernels that take sinks themselves give no gradient for them."""
    if heads.sinks is None:
        return heads, layout.varlen
    if heads.window is not None:
        raise ValueError("attention: no variable-length kernel has a sliding window with sinks; use lion.")
    query, key, value, scale = sinks_as_key(*heads[:3], heads.sinks, heads.scale)
    return Heads(query, key, value, scale, softcap=heads.softcap), layout.varlen_with_sinks


def _varlen_arguments(heads: Heads, index: VarlenIndex) -> tuple[Any, ...]:
    """Positional arguments of variable-length kernels: rows of tokens, cumulative and longest lengths."""
    query = heads.query if index.queries is None else heads.query[:, index.queries]
    key, value = (t if index.keys is None else t[:, index.keys] for t in (heads.key, heads.value))
    rows = (tensor.transpose(0, 1).contiguous() for tensor in (query, key, value))
    return (*rows, index.cu_queries, index.cu_keys, index.max_queries, index.max_keys)


def _varlen_options(heads: Heads, is_causal: bool, accepted: frozenset[str]) -> tuple[Heads, dict[str, Any]]:
    """Options by the names of this torch version, and heads adapted where it lacks one.

    torch 2.10 had ``is_causal``, no window and no scale; 2.11 has both, and equal head counts only; 2.12 added
    ``enable_gqa``.
    """
    options: dict[str, Any] = {}
    if "window_size" in accepted:
        options["window_size"] = _window_size(heads, is_causal)
    elif heads.window is None:
        options["is_causal"] = is_causal
    else:
        raise ValueError("attention: lion_varlen needs torch >= 2.11 for a sliding window; use lion_sdpa.")
    if "enable_gqa" in accepted:
        options["enable_gqa"] = True
    else:
        heads = with_repeated_keys(heads)
    if "scale" in accepted:
        options["scale"] = heads.scale
    elif heads.scale is not None:
        heads = heads._replace(query=heads.query * (heads.scale * heads.query.shape[-1] ** 0.5))
    return heads, options


def _window_size(heads: Heads, is_causal: bool) -> tuple[int, int]:
    """Keys to the left and to the right of a query's own, -1 for all."""
    left = -1 if heads.window is None else heads.window - 1
    return (left, 0 if is_causal else left)


@cache
def accepted_by(function: Callable[..., Any]) -> frozenset[str]:
    """Names of a function's parameters, which tell torch's releases apart."""
    return frozenset(inspect.signature(function).parameters)
