"""FLOPs from shapes and segments, against what PyTorch counts while a model runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.rewards.spec import RewardModelSpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.planning.flops import training_flops, visible_pairs
from lion_lightning.types import PackedBatch, segment_table
from tests import tiny

# tiny.config: two layers, hidden 32, four heads of 8 over two key heads, MLP of 48, vocabulary 101
LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48  # q, k and v, o, and the three matrices of the MLP
HEAD = 101 * 32
PAIR = 12 * 2 * 32  # forward and backward of scores and outputs, two layers, four heads of 8


def counted(policy: torch.nn.Module, batch: PackedBatch) -> int:
    """What PyTorch counts in forward and backward, with attention spelled out as matrix products."""
    # The head's gradient is added up in place, an operation that PyTorch does not count unless told how.
    in_place: Any = {torch.ops.aten.addmm_: lambda total, left, right, **_: 2 * left[0] * left[1] * right[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter, sdpa_kernel(SDPBackend.MATH):
        policy(batch).values.sum().backward()
    # In transformers 5.17 the angles of rotary positions are a matrix product too, which is not counted.
    angles = sum(sum(ops.values()) for name, ops in counter.get_flop_counts().items() if name.endswith("rotary_emb"))
    return int(counter.get_total_flops() - angles)


def test_a_reward_model_has_no_head_per_target() -> None:
    flops = training_flops(RewardModelSpec(config=tiny.config()).build().causal_lm)
    assert flops.per_target == 0
    assert flops.per_token == 6 * (2 * LAYER + 32)  # and its own head, a row of 32
    assert flops.per_pair == {None: PAIR}


def rectangles(batch: PackedBatch) -> int:
    """Pairs of a token and any token of its own segment or an ancestor, before it or after it."""
    contexts = [batch.segments[segment.parent].length if segment.parent >= 0 else 0 for segment in batch.segments]
    return sum(s.length * (s.length + context) for s, context in zip(batch.segments, contexts, strict=True))


def excess(batch: PackedBatch) -> int:
    """What the run computes beyond the model's FLOPs: scores of the unseen half (all of so few logits are kept)."""
    return PAIR * (rectangles(batch) - visible_pairs(batch.segments))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shape", [tiny.DOCUMENTS, tiny.TREE], ids=["documents", "tree"])
def test_count_equals_pytorch_count_but_for_masked_scores(shape: Any, tied: bool) -> None:
    lengths, parents = shape
    policy, batch = tiny.policy(tie_word_embeddings=tied), tiny.row(lengths, parents, (3, 4, 9, 10, 11, 16))
    assert len(batch.targets) == 6
    assert counted(policy, batch) == training_flops(policy.causal_lm).of(batch) + excess(batch)


def test_a_tied_head_counts_once_and_the_embedding_never() -> None:
    for tied in (False, True):
        flops = training_flops(tiny.policy(tie_word_embeddings=tied).causal_lm)
        assert flops.per_token == 6 * 2 * LAYER
        assert flops.per_target == 6 * HEAD
        assert flops.per_pair == {None: PAIR}


def test_frozen_weights_need_no_gradient_of_their_own() -> None:
    pytest.importorskip("peft")
    spec = PolicySpec(config=tiny.config(tie_word_embeddings=False), lora=LoRASpec(r=4, target_modules=["q_proj"]))
    policy, batch = spec.build(), tiny.row(*tiny.TREE)
    flops = training_flops(policy.causal_lm)
    adapters = 4 * 32 + 32 * 4
    assert flops.per_token == 2 * (4 * LAYER + 6 * adapters)
    assert flops.per_target == 4 * HEAD
    # The first layer's input depends on no trained weight: q, k, v and the adapter's first half need no gradient of it.
    first = 2 * (32 * 32 + 2 * 32 * 16 + 4 * 32) * len(batch.input_ids)
    # And its keys and values depend on none either: two of attention's four backward products.
    idle = 2 * 2 * 32 * rectangles(batch)
    assert counted(policy, batch) == flops.of(batch) + excess(batch) - first - idle


def test_pairs_count_ancestors_and_stop_at_the_window() -> None:
    tree = segment_table((3, 2), (-1, 0))
    assert visible_pairs(tree) == (1 + 2 + 3) + (4 + 5)
    assert visible_pairs(tree, window=3) == (1 + 2 + 3) + (3 + 3)
    assert visible_pairs(segment_table((3, 2), (-1, -1))) == (1 + 2 + 3) + (1 + 2)


def test_pairs_of_bidirectional_segments_count_tokens_behind_within_the_window() -> None:
    assert visible_pairs(segment_table((4, 2), (-1, 0), (True,))) == 4 * 4 + (5 + 6)
    assert visible_pairs(segment_table((4, 2), (-1, 0), (True,)), window=2) == (2 + 3 + 3 + 2) + (2 + 2)
    assert visible_pairs(segment_table((2, 3), (-1, 0), (False, True)), window=3) == (1 + 2) + (5 + 4 + 3)


def test_sliding_layers_are_counted_by_their_window() -> None:
    gemma = tiny.policy("gemma2", sliding_window=4, head_dim=8).causal_lm
    assert training_flops(gemma).per_pair == {4: PAIR / 2, None: PAIR / 2}  # every other layer slides
    assert training_flops(tiny.policy("mistral", sliding_window=4).causal_lm).per_pair == {4: PAIR}


def test_only_the_experts_that_a_token_visits_count() -> None:
    flops = training_flops(tiny.policy("mixtral", num_local_experts=4, num_experts_per_tok=2).causal_lm)
    attention, mlp, router = 2 * 32 * 32 + 2 * 32 * 16, 3 * 32 * 48, 4 * 32
    assert flops.per_token == 6 * 2 * (attention + 2 * mlp + router)


def test_matrices_outside_of_linear_layers_count() -> None:
    gpt2 = PolicySpec(
        config={"model_type": "gpt2", "vocab_size": 101, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    ).build()
    assert training_flops(gpt2.causal_lm).per_token == 6 * 2 * 12 * 32 * 32  # q, k, v, o, and twice four times as wide
