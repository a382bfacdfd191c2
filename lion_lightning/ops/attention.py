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
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

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
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None


Attend = Callable[[Heads, RowLayout], Tensor]
"""From heads of a packed row to outputs, ``(heads, tokens, head size)``."""


def attend_sdpa(heads: Heads, layout: RowLayout) -> Tensor:
    """One SDPA call per segment: no mask tensor for documents, a small one (answer by context) for answers."""
    query, key, value = (layout.split(tensor.transpose(0, 1)) for tensor in heads[:3])
    outputs = [
        _attend_segment(
            heads._replace(
                query=query[chain[-1]].transpose(0, 1),
                key=_joined([key[index] for index in chain]),
                value=_joined([value[index] for index in chain]),
            ),
            layout,
            alone=len(chain) == 1,
        )
        for chain in layout.chains
    ]
    if len(outputs) == 1:
        return outputs[0]
    # along the tokens' dimension of a (tokens, heads, head size) tensor, as the output projection reads it
    return torch.cat([output.transpose(0, 1) for output in outputs]).transpose(0, 1)


def attend_dense(heads: Heads, layout: RowLayout) -> Tensor:
    """One call over the full row under a ``(tokens, tokens)`` mask: slow and quadratic in memory, for tests."""
    mask = layout.visible
    if heads.window is not None:
        mask = mask & (layout.positions[:, None] - layout.positions[None, :] < heads.window)
    return _attend(heads, mask)


def attend_varlen(heads: Heads, layout: RowLayout) -> Tensor:
    """PyTorch's own variable-length flash attention (GPU, half precision, torch >= 2.10).

    Raises:
        ValueError: The model needs soft-capped scores, or a sliding window before torch 2.11.
    """
    from torch.nn.attention.varlen import varlen_attn

    if heads.softcap is not None:
        raise ValueError(
            "attention: lion_varlen does not support the soft-capped scores of this model; use lion_sdpa or lion_flash."
        )
    kernel: Callable[..., Any] = varlen_attn
    heads, options = _varlen_options(heads, _parameters(kernel))
    output: Tensor = kernel(*_varlen_arguments(heads, layout), **options)
    return output.transpose(0, 1)


def attend_flash(heads: Heads, layout: RowLayout) -> Tensor:
    """The ``flash-attn`` package's variable-length kernel (GPU, half precision)."""
    from flash_attn import flash_attn_varlen_func

    output: Tensor = flash_attn_varlen_func(
        *_varlen_arguments(heads, layout),
        softmax_scale=heads.scale,
        causal=True,
        window_size=_window_size(heads),
        softcap=heads.softcap or 0.0,
    )
    return output.transpose(0, 1)


def attend_best(heads: Heads, layout: RowLayout) -> Tensor:
    """The fastest path that supports these tensors: a variable-length kernel on a GPU in half precision, else SDPA."""
    half = heads.query.is_cuda and heads.query.dtype in (torch.bfloat16, torch.float16)
    path = _gpu_path(heads.window is not None, heads.softcap is not None) if half else attend_sdpa
    return path(heads, layout)


PATHS: dict[str, Attend] = {
    "lion": attend_best,
    "lion_sdpa": attend_sdpa,
    "lion_varlen": attend_varlen,
    "lion_flash": attend_flash,
    "lion_dense": attend_dense,
}
"""Functions by their name in ``PolicySpec.attention`` (and in any ``attn_implementation``)."""


def _attend_segment(own: Heads, layout: RowLayout, alone: bool) -> Tensor:
    fits = own.window is None or own.key.shape[1] <= own.window
    if fits and own.softcap is None and alone:
        return _attend(own, None)
    return _attend(own, _segment_mask(own, layout))


def _segment_mask(own: Heads, layout: RowLayout) -> Tensor:
    """Additive mask ``(queries, keys)``; one tensor for all layers, also among what autograd saves."""
    queries, keys, masks = own.query.shape[1], own.key.shape[1], layout.masks
    name = (queries, keys, own.window, own.query.dtype)
    if name not in masks:
        hidden = ~_lower_right(queries, keys, own.window, own.query.device)
        masks[name] = own.query.new_zeros(queries, keys).masked_fill_(hidden, float("-inf"))
    return masks[name]


def _joined(parts: list[Tensor]) -> Tensor:
    """Concatenate parts ``(tokens, heads, head size)`` along the tokens, and put the heads first."""
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).transpose(0, 1)


def _lower_right(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """``(queries, keys)`` bool causal mask whose last query sees every key (the last ``window`` of them, if given)."""
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)[None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _attend(heads: Heads, mask: Tensor | None) -> Tensor:
    """SDPA under ``mask`` (None: causal), or by hand where scores are soft-capped.

    A mask is bool (True: attend) or, in the query's dtype, added to the scores.
    """
    if heads.softcap is not None:
        return _attend_softcapped(heads, mask, heads.softcap)
    if mask is None:
        query, key, value = (tensor[None] for tensor in heads[:3])
        grouped = query.shape[1] != key.shape[1]
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=heads.scale, enable_gqa=grouped)[0]
    # With a mask, GPUs have no fused kernel for grouped heads: each group is an item of the batch, its keys a view.
    shape = (heads.key.shape[0], heads.query.shape[0] // heads.key.shape[0])
    key, value = (tensor[:, None].expand(*shape, *tensor.shape[1:]) for tensor in (heads.key, heads.value))
    query = heads.query.reshape(*shape, *heads.query.shape[1:])
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=heads.scale).flatten(0, 1)


def _attend_softcapped(heads: Heads, mask: Tensor | None, softcap: float) -> Tensor:
    query, key, value = _with_repeated_keys(heads)[:3]
    if mask is None:
        mask = _lower_right(query.shape[-2], key.shape[-2], None, query.device)
    scores = query @ key.transpose(-1, -2) * (heads.scale if heads.scale is not None else query.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, torch.finfo(query.dtype).min) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value


def _with_repeated_keys(heads: Heads) -> Heads:
    repeats = heads.query.shape[-3] // heads.key.shape[-3]
    if repeats == 1:
        return heads
    key, value = (tensor.repeat_interleave(repeats, dim=-3) for tensor in (heads.key, heads.value))
    return heads._replace(key=key, value=value)


def _varlen_arguments(heads: Heads, layout: RowLayout) -> tuple[Any, ...]:
    """Positional arguments of variable-length kernels: rows of tokens, cumulative and longest lengths."""
    index = layout.varlen
    key, value = (t if index.gather is None else t[:, index.gather] for t in (heads.key, heads.value))
    rows = (tensor.transpose(0, 1).contiguous() for tensor in (heads.query, key, value))
    return (*rows, index.cu_queries, index.cu_keys, index.max_queries, index.max_keys)


def _varlen_options(heads: Heads, accepted: frozenset[str]) -> tuple[Heads, dict[str, Any]]:
    """Options by the names of this torch version, and heads adapted where it lacks one.

    torch 2.10 had ``is_causal``, no window and no scale; 2.11 has both, and equal head counts only; 2.12 added
    ``enable_gqa``.
    """
    options: dict[str, Any] = {}
    if "window_size" in accepted:
        options["window_size"] = _window_size(heads)
    elif heads.window is None:
        options["is_causal"] = True
    else:
        raise ValueError("attention: lion_varlen needs torch >= 2.11 for a sliding window; use lion_sdpa.")
    if "enable_gqa" in accepted:
        options["enable_gqa"] = True
    else:
        heads = _with_repeated_keys(heads)
    if "scale" in accepted:
        options["scale"] = heads.scale
    elif heads.scale is not None:
        heads = heads._replace(query=heads.query * (heads.scale * heads.query.shape[-1] ** 0.5))
    return heads, options


def _window_size(heads: Heads) -> tuple[int, int]:
    """Keys to the left and to the right of a query's own, -1 for all."""
    return (-1 if heads.window is None else heads.window - 1, 0)


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@cache
def _gpu_path(window: bool, softcap: bool) -> Attend:
    if find_spec("flash_attn") is not None:
        return attend_flash
    if softcap or find_spec("torch.nn.attention.varlen") is None:
        return attend_sdpa
    from torch.nn.attention.varlen import varlen_attn

    return attend_sdpa if window and "window_size" not in _parameters(varlen_attn) else attend_varlen


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
            output = _attend_softcapped(Heads(query, key, value, scaling), attention_mask, softcap)
            return output.transpose(1, 2).contiguous(), None
        if layout is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
            )
        unknown = [name for name in ("s_aux", "position_bias") if kwargs.get(name) is not None]
        if unknown:
            raise NotImplementedError(f"packed attention does not support {', '.join(unknown)}")
        query, key, value = _as_autocast(query[0], key[0], value[0])
        output = attend(Heads(query, key, value, scaling, sliding_window, softcap), layout)
        return output.transpose(0, 1)[None], None

    return attention


def _as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast to autocast's dtype where that is on.

    Rotary embeddings bring queries and keys back to fp32, which have no variable-length kernel; and kernels that
    are called directly do not cast as SDPA does.
    """
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)


for _name, _path in PATHS.items():
    AttentionInterface.register(_name, _interface(_path))
    AttentionMaskInterface.register(_name, sdpa_mask)
