"""Packed rows give the log-probs and gradients of each sequence alone, in every family, every prompt computed once."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec
from lion_lightning.ops.recompute import Recompute
from tests.families import MIXERS, NAMES, family
from tests.marks import slow
from tests.tiny import alone, gradients, row

FOREST = ((7, 5, 9, 4, 6, 3, 8, 4, 2, 5), (-1, -1, 1, 1, 1, -1, 5, -1, 7, 7))
"""A document, then prompts with three answers, with one, and with two."""
QUICK = ("gpt_oss", "qwen3_5_text", "lfm2")


def build(name: str, **spec: Any) -> PolicyModel:
    torch.manual_seed(0)
    model = PolicySpec(config=family(name), **spec).build()
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:  # starts at zero, where an adapter changes nothing
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def relative_errors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Largest error of each gradient, relative to its largest entry (at least a thousandth of the largest of all)."""
    assert actual.keys() == expected.keys()
    floor = 1e-3 * max(float(gradient.abs().max()) for gradient in expected.values())
    return {
        name: float((actual[name] - gradient).abs().max()) / max(floor, float(gradient.abs().max()))
        for name, gradient in expected.items()
    }


@pytest.mark.parametrize(
    ("name", "lora", "recompute"),
    [
        *((name, None, "none") for name in QUICK),
        ("qwen3_5_text", LoRASpec(r=4), "full"),
        ("lfm2", LoRASpec(r=4), "elementwise"),
        *slow(*((name, None, "none") for name in NAMES if name not in QUICK)),
        *slow(*((name, LoRASpec(r=4), "full") for name in NAMES if name != "qwen3_5_text")),
        *slow(*((name, None, "elementwise") for name in NAMES)),
    ],
)
def test_a_packed_forest_equals_each_sequence_alone(
    name: str, lora: LoRASpec | None, recompute: Recompute, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lion_lightning"):
        model = build(name, lora=lora, recompute=recompute)
    assert model.packed, caplog.text
    assert not [record for record in caplog.records if record.name.startswith("lion_lightning")]
    batch = row(*FOREST)
    packed = model(batch).values
    packed_gradients = gradients(model, packed)

    model.causal_lm.set_attn_implementation("eager")
    expected = alone(model.model, batch)
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-5)
    alone_gradients = gradients(model, expected)
    tolerance = 1e-5
    if name == "gemma4_text":  # its scores have no scale: alone, too, its gradients are 2e-5 from those in fp64
        exact = gradients(model.double(), alone(model.model, batch))
        tolerance = 2 * max(relative_errors(alone_gradients, exact).values())
        assert tolerance <= 1e-4
    errors = relative_errors(packed_gradients, alone_gradients)
    assert max(errors.values()) <= tolerance, max(errors.items(), key=lambda item: item[1])


@pytest.mark.parametrize("name", ["qwen3_5_text", *slow(*(name for name in NAMES if name != "qwen3_5_text"))])
def test_a_prompt_goes_through_embedding_and_feed_forward_once(name: str) -> None:
    model = build(name)
    seen: list[int] = []
    model.causal_lm.get_input_embeddings().register_forward_pre_hook(lambda _, ids: seen.append(ids[0].numel()))
    model(row(*FOREST))
    assert set(seen) == {sum(FOREST[0])}
    assert bool(model.mixers.names) == (name in MIXERS)


@pytest.mark.parametrize("name", ["lfm2", *slow(*(name for name in MIXERS if name != "lfm2"))])
def test_linear_layers_within_a_mixer_see_every_token_of_a_batch_once(name: str) -> None:
    model = build(name)
    mixer = model.causal_lm.get_submodule(model.mixers.names[0])
    (projection,) = [child for place, child in mixer.named_children() if place == "out_proj"]
    seen: list[int] = []
    weight = projection.register_forward_pre_hook(lambda _, states: seen.append(states[0].shape[:2].numel()))
    model(row((20, 10, 10, 9), (-1, 0, 0, 0)))  # 30, 30 and 29 tokens, of which 20 are the same: one batch
    weight.remove()
    calls: list[int] = []
    original = torch.nn.functional.linear

    def counted(states: Tensor, *args: Any) -> Tensor:
        if args[0] is projection.weight:
            calls.append(states.shape[:-1].numel())
        return original(states, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", counted)
        model(row((20, 10, 10, 9), (-1, 0, 0, 0)))
    assert seen == [90]
    assert calls == [49]
