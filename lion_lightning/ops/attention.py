"""Attention for packed rows, registered with transformers: any causal LM that uses its interface runs unmodified.

Importing this module registers ``lion`` (which picks the fastest path for the tensors it gets) and the single paths
``lion_sdpa``, ``lion_varlen``, ``lion_flash`` and ``lion_dense``. Each takes a :class:`RowLayout` through the keyword
argument ``layout``; called without one (in ``generate``, or by somebody else's code) each is plain SDPA under
transformers' own mask, so the same model trains on packed rows and generates from padded batches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lion_lightning.ops.heads import Attend, Heads, with_repeated_keys
from lion_lightning.ops.layout import RowLayout
from lion_lightning.ops.sinks import sinks_as_key
from lion_lightning.ops.varlen import accepted_by, attend_flash, attend_varlen


def attend_sdpa(heads: Heads, layout: RowLayout) -> Tensor:
    """One SDPA call per segment: no mask tensor for documents, a small one (answer by context) for answers."""
    query, key, value = (layout.split(tensor.transpose(0, 1)) for tensor in heads[:3])
    outputs = []
    for segment, chain in zip(layout.segments, layout.chains, strict=True):
        own = heads._replace(
            query=query[chain[-1]].transpose(0, 1),
            key=_joined([key[index] for index in chain]),
            value=_joined([value[index] for index in chain]),
        )
        fits = own.window is None or own.key.shape[1] <= own.window
        unmasked = fits and (segment.bidirectional or (len(chain) == 1 and own.softcap is None))
        mask = None if unmasked else _segment_mask(own, layout, segment.bidirectional)
        outputs.append(_attend(own, mask, is_causal=unmasked and not segment.bidirectional))
    if len(outputs) == 1:
        return outputs[0]
    # along the tokens' dimension of a (tokens, heads, head size) tensor, as the output projection reads it
    return torch.cat([output.transpose(0, 1) for output in outputs]).transpose(0, 1)


def attend_dense(heads: Heads, layout: RowLayout) -> Tensor:
    """One call over the full row under a ``(tokens, tokens)`` mask: slow and quadratic in memory, for tests."""
    mask = layout.visible
    if heads.window is not None:
        mask = mask & ((layout.positions[:, None] - layout.positions[None, :]).abs() < heads.window)
    return _attend(heads, mask if heads.sinks is None else pad(mask, (1, 0), value=True), is_causal=False)


def attend_best(heads: Heads, layout: RowLayout) -> Tensor:
    """The fastest path that supports these tensors: a variable-length kernel on a GPU in half precision, else SDPA."""
    half = heads.query.is_cuda and heads.query.dtype in (torch.bfloat16, torch.float16)
    path = _gpu_path(heads.window is not None, heads.softcap is not None) if half else attend_sdpa
    if heads.window is not None and heads.sinks is not None:  # no kernel has both
        path = attend_sdpa
    return path(heads, layout)


PATHS: dict[str, Attend] = {
    "lion": attend_best,
    "lion_sdpa": attend_sdpa,
    "lion_varlen": attend_varlen,
    "lion_flash": attend_flash,
    "lion_dense": attend_dense,
}
"""Functions by their name in ``PolicySpec.attention`` (and in any ``attn_implementation``)."""


def _segment_mask(own: Heads, layout: RowLayout, bidirectional: bool) -> Tensor:
    """Additive mask ``(queries, keys)``; one tensor for all layers, also among what autograd saves.

    With sinks it has a first column for them.
    """
    queries, keys, masks = own.query.shape[1], own.key.shape[1], layout.masks
    name = (queries, keys, own.window, own.query.dtype, own.sinks is not None, bidirectional)
    if name not in masks:
        hidden = ~_lower_right(queries, keys, own.window, own.query.device, bidirectional)
        mask = own.query.new_zeros(queries, keys).masked_fill_(hidden, float("-inf"))
        masks[name] = mask if own.sinks is None else pad(mask, (1, 0))
    return masks[name]


def _joined(parts: list[Tensor]) -> Tensor:
    """Concatenate parts ``(tokens, heads, head size)`` along the tokens, and put the heads first."""
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).transpose(0, 1)


def _lower_right(
    queries: int, keys: int, window: int | None, device: torch.device, bidirectional: bool = False
) -> Tensor:
    """``(queries, keys)`` bool causal mask whose last query sees every key (the last ``window`` of them, if given).

    A bidirectional one reaches as far behind a query as before it.
    """
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)[None, :]
    if bidirectional:
        distance = distance.abs()
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _attend(heads: Heads, mask: Tensor | None, is_causal: bool) -> Tensor:
    """SDPA, or by hand where scores are soft-capped; without a mask causal or of all keys.

    A mask is bool (True: attend) or, in the query's dtype, added to the scores.
    """
    if heads.softcap is not None:
        return _attend_softcapped(heads, mask, is_causal, heads.softcap)
    if heads.sinks is not None:
        return _attend_sinks(heads, mask, is_causal, _attend)
    if mask is None:
        query, key, value = (tensor[None] for tensor in heads[:3])
        options: dict[str, Any] = {"scale": heads.scale, "enable_gqa": query.shape[1] != key.shape[1]}
        return scaled_dot_product_attention(query, key, value, is_causal=is_causal, **options)[0]
    # With a mask, GPUs have no fused kernel for grouped heads: each group is an item of the batch, its keys a view.
    shape = (heads.key.shape[0], heads.query.shape[0] // heads.key.shape[0])
    key, value = (tensor[:, None].expand(*shape, *tensor.shape[1:]) for tensor in (heads.key, heads.value))
    query = heads.query.reshape(*shape, *heads.query.shape[1:])
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=heads.scale).flatten(0, 1)


def _attend_sinks(
    heads: Heads, mask: Tensor | None, is_causal: bool, attend: Callable[[Heads, Tensor | None, bool], Tensor]
) -> Tensor:
    """Attention with sinks by one without; a mask has a first column for them."""
    size = heads.value.shape[-1]
    heads = Heads(*sinks_as_key(*heads[:3], heads.sinks, heads.scale))
    if not is_causal:
        return attend(heads, mask, False)[..., :size]
    # a query for the key in front, so that each of the others sees up to its own
    return attend(heads._replace(query=pad(heads.query, (0, 0, 1, 0))), None, True)[..., 1:, :size]


def _attend_softcapped(heads: Heads, mask: Tensor | None, is_causal: bool, softcap: float) -> Tensor:
    query, key, value = with_repeated_keys(heads)[:3]
    if is_causal:
        mask = _lower_right(query.shape[-2], key.shape[-2], None, query.device)
    scores = query @ key.transpose(-1, -2) * (heads.scale if heads.scale is not None else query.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(query.dtype).min) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value


@cache
def _gpu_path(window: bool, softcap: bool) -> Attend:
    if find_spec("flash_attn") is not None:
        return attend_flash
    if softcap or find_spec("torch.nn.attention.varlen") is None:
        return attend_sdpa
    from torch.nn.attention.varlen import varlen_attn

    return attend_sdpa if window and "window_size" not in accepted_by(varlen_attn) else attend_varlen


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
        heads = Heads(query, key, value, scaling, sliding_window, softcap, kwargs.pop("s_aux", None))
        if softcap is not None and heads.sinks is not None:
            raise NotImplementedError("attention: soft-capped scores with sinks are not supported; use eager.")
        if layout is None and (softcap is not None or heads.sinks is not None):
            return _attend_unpacked(heads, attention_mask).transpose(1, 2).contiguous(), None
        if layout is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
            )
        if kwargs.get("position_bias") is not None:
            raise NotImplementedError("packed attention does not support position_bias")
        query, key, value = _as_autocast(query[0], key[0], value[0])
        output = attend(heads._replace(query=query, key=key, value=value), layout)
        return output.transpose(0, 1)[None], None

    return attention


def _attend_unpacked(heads: Heads, mask: Tensor | None) -> Tensor:
    """Padded batches ``(sequences, heads, tokens, head size)`` of models that SDPA alone gets wrong."""
    if heads.softcap is not None:
        return _attend_softcapped(heads, mask, mask is None, heads.softcap)
    if mask is not None:
        mask = pad(mask, (1, 0), value=True if mask.dtype == torch.bool else 0.0)
    elif heads.query.shape[-2] == 1:  # a step of generation, which sees all
        mask = heads.key.new_ones(1, heads.key.shape[-2] + 1, dtype=torch.bool)
    return _attend_sinks(heads, mask, mask is None, _attend_batch)


def _attend_batch(heads: Heads, mask: Tensor | None, is_causal: bool) -> Tensor:
    query, key, value = with_repeated_keys(heads)[:3]
    return scaled_dot_product_attention(query, key, value, mask, is_causal=is_causal, scale=heads.scale)


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
