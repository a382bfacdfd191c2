"""Attention for packed rows, registered with transformers: any causal LM that uses its interface runs unmodified.

Importing this module registers ``lion`` (which picks the fastest path for the tensors it gets) and the single paths
``lion_sdpa``, ``lion_varlen``, ``lion_flash`` and ``lion_dense``. Each takes a :class:`RowLayout` through the keyword
argument ``layout``; called without one (in ``generate``, or by somebody else's code) each is plain SDPA under
transformers' own mask, so the same model trains on packed rows and generates from padded batches.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lion_lightning.models.layout import RowLayout, SegmentAccess

Attend = Callable[..., Tensor]
"""``(query, key, value, layout, scale, window, softcap) -> output``, each ``(heads, tokens, head size)``."""


def attend_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: RowLayout,
    scale: float | None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """One SDPA call a segment: no mask tensor for documents, a small one (answer by context) for answers."""
    return torch.cat(
        [_attend_segment(query, key, value, access, scale, window, softcap) for access in layout.accesses], dim=1
    )


def attend_dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: RowLayout,
    scale: float | None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """One call over the whole row under a ``(tokens, tokens)`` mask: slow, quadratic in memory, and easy to trust."""
    mask = layout.visible
    if window is not None:
        mask = mask & (layout.positions[:, None] - layout.positions[None, :] < window)
    return _attend(query, key, value, mask, scale, softcap)


def attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: RowLayout,
    scale: float | None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """PyTorch's own variable-length flash attention (GPU, half precision, torch >= 2.10).

    Raises:
        ValueError: If the model soft-clips its attention scores, which this kernel cannot.
    """
    if softcap is not None:
        raise ValueError(
            "attention: lion_varlen cannot soft-clip scores as this model does; use lion_sdpa or lion_flash."
        )
    from torch.nn.attention.varlen import varlen_attn

    index = layout.varlen
    accepted = _parameters(varlen_attn)
    options: dict[str, Any] = {"scale": scale}
    # torch 2.10 had is_causal and no window; 2.11 has a window and equal head counts only; 2.12 added enable_gqa.
    if "window_size" in accepted:
        options["window_size"] = (-1 if window is None else window - 1, 0)
    elif window is None:
        options["is_causal"] = True
    else:
        raise ValueError("attention: lion_varlen needs torch >= 2.11 for a sliding window; use lion_sdpa.")
    if "enable_gqa" in accepted:
        options["enable_gqa"] = True
    else:
        key, value = (_repeat_heads(tensor, query.shape[0]) for tensor in (key, value))
    if "scale" not in accepted:
        query = query if scale is None else query * (scale * query.shape[-1] ** 0.5)
        del options["scale"]
    key, value = (tensor if index.gather is None else tensor[:, index.gather] for tensor in (key, value))
    rows = [tensor.transpose(0, 1).contiguous() for tensor in (query, key, value)]
    lengths = (index.cu_queries, index.cu_keys, index.max_queries, index.max_keys)
    kernel: Callable[..., Any] = varlen_attn
    output: Tensor = kernel(*rows, *lengths, **options)
    return output.transpose(0, 1)


def attend_flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: RowLayout,
    scale: float | None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The ``flash-attn`` package's variable-length kernel (GPU, half precision)."""
    from flash_attn import flash_attn_varlen_func

    index = layout.varlen
    key, value = (tensor if index.gather is None else tensor[:, index.gather] for tensor in (key, value))
    rows = [tensor.transpose(0, 1).contiguous() for tensor in (query, key, value)]
    output: Tensor = flash_attn_varlen_func(
        *rows,
        index.cu_queries,
        index.cu_keys,
        index.max_queries,
        index.max_keys,
        softmax_scale=scale,
        causal=True,
        window_size=(-1 if window is None else window - 1, 0),
        softcap=softcap or 0.0,
    )
    return output.transpose(0, 1)


def attend_best(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: RowLayout,
    scale: float | None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The fastest path that can do these tensors: a variable-length kernel on a GPU in half precision, else SDPA."""
    half = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)
    path = (_gpu_path(softcap is not None) if half else None) or attend_sdpa
    return path(query, key, value, layout, scale, window, softcap)


PATHS: dict[str, Attend] = {
    "lion": attend_best,
    "lion_sdpa": attend_sdpa,
    "lion_varlen": attend_varlen,
    "lion_flash": attend_flash,
    "lion_dense": attend_dense,
}
"""Names for ``PolicySpec.attention`` (and any ``attn_implementation``) to their functions."""


def _attend_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    access: SegmentAccess,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    key, value = (_take(tensor, access.keys) for tensor in (key, value))
    query = query[:, access.queries]
    fits = window is None or key.shape[1] <= window
    if fits and softcap is None and len(access.keys) == 1:
        return _attend(query, key, value, None, scale, None)
    return _attend(query, key, value, _lower_right(query.shape[1], key.shape[1], window, query.device), scale, softcap)


def _take(tensor: Tensor, spans: tuple[slice, ...]) -> Tensor:
    parts = [tensor[:, span] for span in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _lower_right(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """``(queries, keys)`` bool causal mask whose last query sees every key (the last ``window`` of them, if given)."""
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)[None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, softcap: float | None
) -> Tensor:
    """SDPA under ``mask`` (None: plain causal), with the scores soft-clipped by hand where the model wants that."""
    if softcap is not None:
        return _attend_softcapped(query, key, value, mask, scale, softcap)
    grouped = mask is None and query.shape[-3] != key.shape[-3]
    if not grouped:  # with a mask, GPUs have no fused kernel for grouped heads
        key, value = (_repeat_heads(tensor, query.shape[-3]) for tensor in (key, value))
    attended = scaled_dot_product_attention(
        query[None], key[None], value[None], attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )
    return attended[0]


def _attend_softcapped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, softcap: float
) -> Tensor:
    key, value = (_repeat_heads(tensor, query.shape[-3]) for tensor in (key, value))
    if mask is None:
        mask = _lower_right(query.shape[-2], key.shape[-2], None, query.device)
    scores = query @ key.transpose(-1, -2) * (scale if scale is not None else query.shape[-1] ** -0.5)
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~mask, torch.finfo(query.dtype).min)
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value


def _repeat_heads(tensor: Tensor, heads: int) -> Tensor:
    repeats = heads // tensor.shape[-3]
    return tensor if repeats == 1 else tensor.repeat_interleave(repeats, dim=-3)


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@cache
def _gpu_path(softcap: bool) -> Attend | None:
    if find_spec("flash_attn") is not None:
        return attend_flash
    return attend_varlen if not softcap and find_spec("torch.nn.attention.varlen") is not None else None


def _interface(attend: Attend) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Wrap a path in the signature that transformers calls."""

    def attention(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        layout: RowLayout | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if layout is None and softcap is not None:
            output = _attend_softcapped(query, key, value, attention_mask, scaling, softcap)
            return output.transpose(1, 2).contiguous(), None
        if layout is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
            )
        unknown = [name for name in ("s_aux", "position_bias") if kwargs.get(name) is not None]
        if unknown:
            raise NotImplementedError(f"packed attention knows nothing of {unknown}")
        output = attend(query[0], key[0], value[0], layout, scaling, sliding_window, softcap)
        return output.transpose(0, 1)[None], None

    return attention


for _name, _path in PATHS.items():
    AttentionInterface.register(_name, _interface(_path))
    AttentionMaskInterface.register(_name, sdpa_mask)
