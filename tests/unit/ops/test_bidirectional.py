"""Bidirectional segments: each token sees all of its own segment, in every way to run a row, or they are refused."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.packing.forms import RowForm
from lion_lightning.models.packing.probe import causal_module, probe_row
from lion_lightning.models.spec import PolicySpec
from lion_lightning.ops.layout import RowLayout
from lion_lightning.ops.recompute import Recompute
from lion_lightning.types import PackedBatch, segment_table
from tests.families import family
from tests.marks import exhaustive
from tests.tiny import LEARNED_POSITIONS, SOFTCAPPED, TREE, config, gradients, policy, row

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
CODEGEN: dict[str, Any] = {"model_type": "codegen", "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}


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


@pytest.mark.parametrize(
    ("attention", "shape"),
    [*product(["lion"], SHAPES), ("lion_dense", "softcapped_scores"), *exhaustive(*product(["lion_dense"], SHAPES))],
)
def test_log_probs_and_gradients_equal_eager_attention_under_masks_written_by_hand(attention: str, shape: str) -> None:
    model = policy(attention=attention, **SHAPES[shape])
    assert model.packed
    assert_as_alone(model, batch())


@pytest.mark.parametrize(
    ("attention", "shape"), [("eager", {}), ("sdpa", {}), ("eager", LEARNED_POSITIONS)], ids=["eager", "sdpa", "gpt2"]
)
def test_padded_sequences_run_under_masks_of_their_own(attention: str, shape: dict[str, Any]) -> None:
    model = policy(attention=attention, **shape)
    assert not model.packed
    assert_as_alone(model, batch())


def test_attention_code_of_the_models_own_gets_a_mask_of_the_row() -> None:
    model = policy(**CODEGEN).eval()
    assert model.form.dense_mask
    assert_as_alone(model, batch())


@pytest.mark.parametrize("recompute", ["full", *exhaustive("elementwise")])
def test_layers_and_adapters_that_run_again_see_the_same(recompute: Recompute) -> None:
    torch.manual_seed(0)
    model = PolicySpec(config=config(), lora=LoRASpec(r=4), recompute=recompute).build().train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert model.causal_lm.is_gradient_checkpointing
    assert_as_alone(model, batch())


@pytest.mark.parametrize("attention", ["lion", "eager"])
def test_answers_whose_frequencies_follow_their_lengths(attention: str) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 12}
    model = policy(attention=attention, rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **factors})
    lengths, parents = (8, 3, 6, 4, 5, 2, 3), (-1, 0, 0, -1, 3, 4, 4)  # on both sides of 12 tokens
    made = row(lengths, parents, [*range(8, 17), *range(26, 31)], bidirectional=(True, False, False, False, True))
    assert len(model.rotary.apart(made).segments) == 2 + 2 + 3 + 3
    assert_as_alone(model, made)


@pytest.mark.parametrize(
    ("attention", "shape", "said"),
    [
        ("lion", "lfm2", r"model\.layers\.0\.conv \(Lfm2ShortConv\) sees no later tokens"),
        *exhaustive(("eager", "falcon_h1", r"model\.layers\.0\.mamba \(FalconH1Mixer\) sees no later tokens")),
        (
            "eager",
            "mistral",
            r"runs padded, and may have a window or select keys \(policy\.attention: lion has windows\)",
        ),
        ("lion", "bloom", r"its attention code takes no mask of queries and keys \(too many values"),
    ],
)
def test_models_that_would_stay_causal_are_refused_by_name(attention: str, shape: str, said: str) -> None:
    made = config(shape, n_layer=2, n_head=4) if shape == "bloom" else family(shape)
    model = PolicySpec(config=made, attention=attention).build().eval()
    model(row(*TREE))
    with pytest.raises(ValueError, match=rf"cannot let tokens of a prefix see those behind them: .*{said}") as error:
        model(batch())
    assert "\n" not in str(error.value)


def test_attention_that_ignores_its_mask_is_found() -> None:
    model = policy(**CODEGEN).eval().causal_lm
    ids, layout = probe_row(model, bidirectional=True)
    inputs = RowForm(dense_mask=True).inputs(ids, layout.positions, layout, model.dtype)
    assert causal_module(model, lambda: model(**inputs), 5, 6) is None
    del inputs["attention_mask"]
    assert causal_module(model, lambda: model(**inputs), 5, 6) == "transformer.h.0.attn (CodeGenAttention)"


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
