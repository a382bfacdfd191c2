"""Recomputation: the same values and gradients to the bit, less kept, no module changed by the default."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.planning.memory_counter import MemoryCounter
from tests.tiny import TREE, config, gradients, row

MODES = ("none", "elementwise", "full")


def build(recompute: Any, model_type: str = "llama", **how: Any) -> Any:
    torch.manual_seed(0)
    policy = PolicySpec(config=config(model_type), recompute=recompute, **how).build().train()
    draw = torch.Generator().manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:  # adapters start at zero, where half of their gradients are zero too
            torch.nn.init.normal_(parameter, generator=draw)
    return policy


def step(policy: Any, autocast: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(2)  # of the adapters' dropout
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values = policy(row(*TREE)).values
    return gradients(policy, values) | {"values": values.detach()}


@pytest.mark.parametrize("lora", [None, LoRASpec(r=4, dropout=0.5)], ids=["full", "lora"])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_values_and_gradients_are_the_same_to_the_bit(model_type: str, autocast: bool, lora: LoRASpec | None) -> None:
    if lora is not None and model_type == "gpt2":
        pytest.skip("peft names no default layers for a GPT-2 of this size")
    plain, *others = (step(build(mode, model_type, lora=lora), autocast) for mode in MODES)
    for other in others:
        assert plain.keys() == other.keys()
        assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_each_mode_keeps_less_and_only_full_repeats_products() -> None:
    kept, flops = [], []
    for mode in MODES:
        policy = build(mode)
        counter = MemoryCounter((*policy.parameters(), *policy.buffers()))
        with FlopCounterMode(display=False) as products, counter, counter.at("forward"):
            values = policy(row(*TREE)).values
            kept.append(counter.live.total())
        with FlopCounterMode(display=False) as backward:
            torch.autograd.backward(values.sum())
        flops.append(products.get_total_flops() + backward.get_total_flops())
    assert kept[0] > 1.2 * kept[1] > 1.2 * kept[2]
    assert flops[0] == flops[1] < flops[2]


def test_of_adapters_the_second_products_are_recomputed_and_nothing_else() -> None:
    flops = []
    for mode in MODES:
        policy = build(mode, lora=LoRASpec(r=4))
        with FlopCounterMode(display=False) as counter:
            torch.autograd.backward(policy(row(*TREE)).values.sum())
        flops.append(counter.get_total_flops())
    tokens = len(row(*TREE).input_ids)
    widths = [layer.out_features for name, layer in policy.named_modules() if name.endswith("lora_B.default")]
    assert flops[0] < flops[1] <= flops[0] + sum(2 * tokens * 4 * width for width in widths)
    assert flops[1] < flops[2]


@pytest.mark.parametrize("mode", MODES)
def test_no_forward_is_replaced(mode: str) -> None:
    assert not [name for name, module in build(mode).named_modules() if "forward" in vars(module)]


def test_a_model_in_evaluation_mode_recomputes_nothing() -> None:
    flops = []
    for mode in MODES:
        policy = build(mode).eval()
        with FlopCounterMode(display=False) as counter:
            torch.autograd.backward(policy(row(*TREE)).values.sum())
        flops.append(counter.get_total_flops())
    assert len(set(flops)) == 1
