"""Bidirectional segments: each token sees all of its own segment, by every attention path, and by no other change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lion_lightning.ops.layout import RowLayout
from lion_lightning.types import PackedBatch, segment_table
from tests.tiny import SOFTCAPPED, gradients, policy, row

# A document; a prompt, seen whole, with two answers of unequal lengths; a document all of whose tokens see each other;
# and one of three segments, of which the one in the middle is bidirectional.
LENGTHS, PARENTS = (4, 6, 5, 3, 5, 3, 4, 3), (-1, -1, 1, 1, -1, -1, 5, 6)
BIDIRECTIONAL = (False, True, False, False, True, False, True, False)
SHAPES: dict[str, Any] = {
    "grouped_heads": {},
    "sliding_window_shorter_than_segments": {"model_type": "mistral", "sliding_window": 4},
    "softcapped_scores": SOFTCAPPED,
    "sinks": {"model_type": "gpt_oss", "head_dim": 8, "num_local_experts": 4, "sliding_window": 4},
}


def batch() -> PackedBatch:
    return row(LENGTHS, PARENTS, bidirectional=BIDIRECTIONAL)


def sees(segments: list[tuple[int, bool]], window: int | None) -> Tensor:
    """``(tokens, tokens)``: which tokens each token sees of a sequence of segments (length, bidirectional)."""
    owners = [(number, both) for number, (length, both) in enumerate(segments) for _ in range(length)]
    mask = torch.zeros(len(owners), len(owners), dtype=torch.bool)
    for query, (own, both) in enumerate(owners):
        for key, (other, _) in enumerate(owners):
            near = window is None or abs(query - key) < window
            mask[query, key] = near and (key <= query or (both and own == other))
    return mask


def alone(model: Any, made: PackedBatch) -> Tensor:
    """Log-probs of targets by the eager attention of transformers, sequence by sequence, each under a mask of its own.

    Layers with a window get one with it.
    """
    values = torch.zeros(len(made.targets))
    layout = RowLayout(made.segments)
    window = getattr(model.config, "sliding_window", None)
    for number, chain in enumerate(layout.chains):
        spans = [made.segments[index] for index in chain]
        places = torch.cat([torch.arange(span.start, span.stop) for span in spans])
        seen = [sees([(span.length, span.bidirectional) for span in spans], limit) for limit in (None, window)]
        full, narrow = (torch.zeros(mask.shape).masked_fill(~mask, -1e30)[None, None] for mask in seen)
        both = {"full_attention": full, "sliding_attention": narrow}
        masks: Any = both if hasattr(model.config, "layer_types") else narrow
        logits = model(input_ids=made.input_ids[places][None], attention_mask=masks, use_cache=False).logits[0]
        mine = (made.target_segments == number).nonzero().flatten()
        at = (places[None, :] == made.logit_positions[mine, None]).int().argmax(1)
        values = values.index_put((mine,), logits.log_softmax(-1)[at, made.targets[mine]])
    return values


def assert_as_alone(model: Any, made: PackedBatch) -> None:
    values = model(made).values
    found = gradients(model, values)
    model.causal_lm.set_attn_implementation("eager")
    expected = alone(model.causal_lm, made)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)
    for name, gradient in gradients(model, expected).items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max().clamp_min(1), name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("attention", ["lion", "lion_dense"])
def test_log_probs_and_gradients_equal_eager_attention_under_masks_written_by_hand(attention: str, shape: str) -> None:
    model = policy(attention=attention, **SHAPES[shape])
    assert model.packed
    assert_as_alone(model, batch())


def test_what_each_token_sees() -> None:
    layout = RowLayout(segment_table((1, 2, 2, 1), (-1, -1, 1, 1), (False, True)))
    assert layout.visible.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],  # the prompt sees itself whole
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],  # an answer is causal
        [0, 1, 1, 1, 1, 0],
        [0, 1, 1, 0, 0, 1],
    ]
