"""Frequencies that follow lengths (LongRoPE, dynamic NTK): each sequence has its own, whatever else is in the row."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lion_lightning.models.packing.rotary import LengthRule
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec
from lion_lightning.ops.layout import RowLayout
from lion_lightning.types import PackedBatch
from tests.families import family
from tests.tiny import alone, gradients, row

LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16}),
    "longrope": ("llama", {"rope_parameters": {**LONGROPE, "original_max_position_embeddings": 16}}),
    # of one kind of layers
    "gemma3": (
        "gemma3_text",
        {
            "num_hidden_layers": 6,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {**LONGROPE, "original_max_position_embeddings": 16},
            },
        },
    ),
    "dynamic": (
        "llama",
        {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
    ),
}
ROWS = {
    "documents": ((25, 9, 20, 16, 17), (-1,) * 5),
    "answers on one side": ((8, 3, 5, 20, 4, 9), (-1, 0, 0, -1, 3, 3)),
    "answers on both sides": ((10, 4, 9, 5, 7), (-1, 0, 0, -1, -1)),
}


def built(name: str, **spec: Any) -> PolicyModel:
    torch.manual_seed(0)
    kind, changes = MODELS[name]
    return PolicySpec(config=family(kind, **changes), **spec).build()


def of_answers(name: str) -> PackedBatch:
    """A row whose targets are all that stands in leaves: a prompt's own are of several sequences."""
    lengths, parents = ROWS[name]
    leaves = {number for number in range(len(lengths)) if number not in parents}
    batch = row(lengths, parents)
    spans = [range(span.start, span.stop) for number, span in enumerate(batch.segments) if number in leaves]
    return row(lengths, parents, [place for span in spans for place in span])


def plain_of(model: PolicyModel) -> Any:
    auto: Any = AutoModelForCausalLM
    plain = auto.from_config(deepcopy(model.causal_lm.config), attn_implementation="eager")
    plain.load_state_dict(model.causal_lm.state_dict())
    return plain


@torch.no_grad()
def each_by_a_new_model(plain: Any, batch: PackedBatch) -> Tensor:
    """Log-probs of the targets; dynamic NTK keeps the frequencies of what a model ran before."""
    values = torch.zeros(len(batch.targets))
    for number, (_, spans) in enumerate(RowLayout(batch.segments).accesses):
        mine = (batch.target_segments == number).nonzero().flatten()
        if len(mine):
            ids = torch.cat([batch.input_ids[span] for span in spans])
            fresh = deepcopy(plain)
            logps: Any = fresh(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
            values[mine] = logps[batch.position_ids[batch.logit_positions[mine]], batch.targets[mine]]
    return values


@pytest.mark.parametrize("attention", ["lion", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_sequences_of_all_lengths_have_the_values_and_gradients_that_they_have_alone(name: str, attention: str) -> None:
    model = built(name, attention=attention)
    plain = plain_of(model)
    for kind in ROWS:
        batch = of_answers(kind)
        expected = each_by_a_new_model(plain, batch)
        torch.testing.assert_close(model(batch).values, expected, rtol=0, atol=1e-5, msg=kind)
    if name != "dynamic":
        own, wanted = gradients(model, model(batch).values), gradients(plain, alone(plain, batch))
        for key, gradient in wanted.items():
            found = own[f"model.{key}"]
            torch.testing.assert_close(found, gradient, rtol=0, atol=2e-5 * float(gradient.abs().max() + 1), msg=key)


def test_nothing_is_left_behind_for_generation_and_copies_have_rules_of_their_own() -> None:
    model = built("dynamic").eval()
    copy, plain = deepcopy(model), plain_of(model)
    batch, short = of_answers("documents"), of_answers("answers on both sides").input_ids[None, :16]
    with torch.no_grad():
        before = model(batch).values
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(copy(batch).values, before)
        options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        own: Any = copy.causal_lm
        assert torch.equal(own.generate(short, **options), plain.generate(short, **options))


@pytest.mark.parametrize(
    ("grows", "expected"), [(False, [16, 16, 17, 17, 17]), (True, [16, 16, 17, 20, 40])], ids=["longrope", "dynamic"]
)
def test_lengths_with_the_same_frequencies(grows: bool, expected: list[int]) -> None:
    rule = LengthRule(16, grows)
    assert [rule.rounded(length) for length in (1, 16, 17, 20, 40)] == expected
