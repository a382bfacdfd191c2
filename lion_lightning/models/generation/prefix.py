"""Generation from bidirectional prefixes: the inference of a prefix language model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from lion_lightning.models.generation.greedy import evaluating
from lion_lightning.models.policy import PolicyModel
from lion_lightning.ops.layout import RowLayout
from lion_lightning.ops.logprobs import pad_left
from lion_lightning.types import PackedBatch, segment_table


@torch.no_grad()
def after_prefixes(policy: PolicyModel, prefixes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Inputs of ``generate`` for what follows prefixes, whose tokens see each other as in bidirectional segments.

    ``policy.causal_lm.generate(**after_prefixes(policy, prefixes), max_new_tokens=32)``: the ``generate`` of
    transformers runs prompts causally and takes no mask of queries and keys. So the prefixes run here, as a packed row
    does in training, and their keys and values go into the cache. The last token of each runs once more in
    ``generate``: it sees all before it either way.

    Args:
        policy: A policy with full weights (:meth:`RolloutPolicy.generating` sees to that, where they are sharded).
        prefixes: Tokens of each, at least one. For several continuations of one, repeat it.

    Returns:
        ``input_ids`` and ``attention_mask``, padded on the left, and ``past_key_values``.

    Raises:
        ValueError: The model has layers that stay causal, counts positions itself, or keeps no cache; or a prefix has
            no tokens.
    """
    if not all(prefixes):
        raise ValueError("a prefix to generate from has no tokens")
    _require_positions(policy, prefixes)
    lengths, device = [*map(len, prefixes)], policy.causal_lm.device
    segments = segment_table(lengths, [-1] * len(lengths), [True] * len(lengths))
    layout = RowLayout(segments, device)
    row = torch.tensor([*chain(*prefixes)], device=device)
    none = row[:0]  # no targets
    cache = DynamicCache()
    batch = PackedBatch(row, layout.positions, segments, none, none, none)
    with evaluating(policy):
        policy.hidden_states(batch, use_cache=True, past_key_values=cache)
    if not cache.layers:  # generate would run the prefixes again, causally
        raise ValueError(f"{type(policy.causal_lm).__name__} puts no keys and values into a DynamicCache")

    source = pad_left([range(segment.start, segment.stop) for segment in segments], 0).to(device)
    places = source if policy.packed else layout.padded.first[source]
    _take(cache, places[:, :-1])
    mask = pad_left([[1] * length for length in lengths], 0).to(device)
    return {"input_ids": row[source], "attention_mask": mask, "past_key_values": cache}


def _take(cache: DynamicCache, places: Tensor) -> None:
    """Keep the keys and values of some places: ``(sequences, tokens)`` positions in the flattened row or batch."""
    for layer in cache.layers:
        for name in ("keys", "values"):  # (rows, heads, tokens, size)
            ran = getattr(layer, name).transpose(1, 2).flatten(0, 1)
            setattr(layer, name, ran[places].transpose(1, 2))


def _require_positions(policy: PolicyModel, prefixes: Sequence[Sequence[int]]) -> None:
    """Refuse models to which ``generate`` cannot tell positions: it pads in front of the shorter prefixes."""
    takes_positions = "position_ids" in inspect.signature(policy.causal_lm.forward).parameters
    padded = len({*map(len, prefixes)}) > 1
    if (policy.packed and policy.form.own_positions) or (padded and not takes_positions):
        raise ValueError(
            f"{type(policy.causal_lm).__name__} counts positions itself, otherwise than generate; choose another model"
        )
