"""Rows in other forms than a layout: a mask for attention code of the model's own, and models that count positions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lion_lightning.models.packing.forms import FORMS, RowForm, possible_forms
from lion_lightning.models.packing.mixers import modules_in_front, named_decoder_layers
from lion_lightning.models.policy import PolicyModel
from lion_lightning.ops.layout import RowLayout
from lion_lightning.types import segment_table
from tests.tiny import TREE, assert_as_alone, config, policy, row

CODEGEN: dict[str, Any] = {"model_type": "codegen", "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}
ROBERTA: dict[str, Any] = {"model_type": "roberta", "is_decoder": True}
RWKV: dict[str, Any] = {"model_type": "rwkv", "attention_hidden_size": 32}


def built(settings: dict[str, Any], **options: Any) -> Any:
    auto: Any = AutoModelForCausalLM
    return auto.from_config(AutoConfig.for_model(**settings), **options)


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        (CODEGEN, RowForm(dense_mask=True)),
        (ROBERTA, RowForm(own_positions=True)),
        (RWKV, RowForm()),  # its layers get no keywords, so they are told the row otherwise
    ],
    ids=["codegen", "roberta", "rwkv"],
)
def test_values_and_gradients_are_those_of_each_sequence_alone(shape: dict[str, Any], form: RowForm) -> None:
    model = policy(**shape).eval()
    assert model.packed
    assert model.form == form
    assert_as_alone(model, row(*TREE))


@pytest.mark.parametrize("shape", [ROBERTA, RWKV], ids=["roberta", "rwkv"])
def test_a_copy_runs_its_own_modules(shape: dict[str, Any]) -> None:
    model = policy(**shape).eval()
    batch = row(*TREE)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        before = model(batch).values
        for parameter in model.parameters():
            parameter.add_(0.1)
        torch.testing.assert_close(copied(batch).values, before)


def test_a_mask_is_the_layout() -> None:
    # a document of 1, then a prompt of 1 with answers of 1 and 2
    layout = RowLayout(segment_table((1, 1, 1, 2), (-1, -1, 1, 1)))
    inputs = RowForm(dense_mask=True).inputs(torch.arange(5), layout.positions, layout, torch.float32)
    assert (inputs["attention_mask"][0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 0, 1, 0],
        [0, 1, 0, 1, 1],
    ]
    assert "layout" not in inputs


@pytest.mark.parametrize(
    ("changes", "row_attention", "expected"),
    [
        ({}, True, list(FORMS)),
        ({}, False, [form for form in FORMS if form.dense_mask]),
        ({"sliding_window": 4}, True, [form for form in FORMS if not form.dense_mask]),
        ({"sliding_window": 4}, False, []),
        ({"index_topk": 4}, True, []),
        ({"compress_rates": {"all": 4}}, True, []),
    ],
)
def test_what_a_short_probe_would_not_show_is_not_tried(
    changes: dict[str, Any], row_attention: bool, expected: list[RowForm]
) -> None:
    model = built(config(**changes))
    assert possible_forms(model, row_attention) == expected


def test_modules_in_front_are_those_that_may_count_positions() -> None:
    model = policy(**ROBERTA).causal_lm
    ids = torch.arange(3, 8)[None]
    assert list(modules_in_front(model, lambda: model(input_ids=ids))) == ["roberta.embeddings"]
    assert list(named_decoder_layers(model)) == ["roberta.encoder.layer.0", "roberta.encoder.layer.1"]


def test_layers_that_are_not_told_the_row_are_not_recomputed(caplog: pytest.LogCaptureFixture) -> None:
    made = built(config(**RWKV), attn_implementation="lion")
    made.gradient_checkpointing_enable()
    assert not PolicyModel(made).packed
    assert "set policy.recompute: none" in caplog.text
