"""Layers that keep less: the same values and gradients, no more matrix products, less kept."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaMLP, LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.weights.full_state import merged_layer, peft_layers
from lion_lightning.ops.lean import keep_less
from tests import tiny

SHAPE = tiny.config()
TOKENS, HIDDEN, INNER, LAYERS = 7, 32, 48, 2  # the shape's, but for the tokens


def llama() -> Any:
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SHAPE))  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.train()


def states(module: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    module.to(dtype)
    return torch.randn(2, TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=dtype).requires_grad_()


def own(module: Any, hidden: Tensor) -> Tensor:
    """By the class's own code, whatever the instance has been given."""
    result: Tensor = type(module).forward(module, hidden)
    return result


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 2, output.numel()).view_as(output).to(output.dtype)
    return torch.autograd.grad((weights * output).sum(), inputs)


def changed(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if "forward" in vars(module)}


def test_norms_and_linear_and_feed_forward_layers_are_changed_and_nothing_else() -> None:
    model = llama()
    keep_less(model)
    layers = [f"model.layers.{index}." for index in range(LAYERS)]
    names = ("input_layernorm", "post_attention_layernorm", "mlp")
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert len(linear) == 7 * LAYERS + 1
    assert changed(model) == {"model.norm"} | linear | {layer + name for layer in layers for name in names}


def test_only_code_that_is_llamas_is_changed_and_only_once() -> None:
    model = llama()
    model.model.norm = GemmaRMSNorm(HIDDEN)  # multiplies by one more than its weight
    model.model.layers[0].input_layernorm = Olmo2RMSNorm(HIDDEN)  # rounds after the weight is multiplied in
    model.model.layers[0].post_attention_layernorm = Qwen3RMSNorm(HIDDEN)  # a copy of Llama's
    model.model.layers[1].input_layernorm.forward = mine = lambda hidden: hidden
    keep_less(model)
    assert not {"model.norm", "model.layers.0.input_layernorm"} & changed(model)
    assert "model.layers.0.post_attention_layernorm" in changed(model)
    assert model.model.layers[1].input_layernorm.forward is mine


def test_of_a_model_that_checkpoints_whole_layers_only_norms_are_changed() -> None:
    model = llama()
    model.gradient_checkpointing_enable()
    keep_less(model)
    assert {type(model.get_submodule(name)) for name in changed(model)} == {LlamaRMSNorm}


# fp32: a few roundings of values around 10. bf16: ours rounds the gradient once, Llama's at each of three steps.
@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_a_norms_values_and_gradients_are_those_of_llamas(dtype: torch.dtype, apart: float) -> None:
    model = llama()
    keep_less(model)
    norm: Any = model.model.norm
    hidden = states(norm, dtype)
    lean, plain = norm(hidden), own(norm, hidden)
    assert torch.equal(lean, plain)
    sides = (gradients(output, hidden, norm.weight) for output in (lean, plain))
    for got, want in zip(*sides, strict=True):
        assert got.dtype == want.dtype
        assert (got - want).float().norm() <= apart * want.float().norm()


def test_a_norms_gradient_is_the_derivative_of_its_values() -> None:
    norm = LlamaRMSNorm(3, eps=0.0)
    keep_less(model := llama())
    norm.forward = model.model.norm.forward.__func__.__get__(norm)  # type: ignore[method-assign]
    hidden = torch.tensor([[2.0, 1.0, 2.0]], requires_grad=True)  # rms: sqrt(3), so y = x / sqrt(3)
    (gradient,) = torch.autograd.grad(norm(hidden)[0, 0], hidden)
    # d y0 / d x = (e0 - x x0 / (n rms^2)) / rms = (e0 - x * 2 / 9) / sqrt(3)
    expected = torch.tensor([[5.0, -2.0, -4.0]]) / 9 / 3**0.5
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-7)


def test_a_frozen_norm_gets_no_gradient_and_passes_its_inputs_on() -> None:
    model = llama()
    keep_less(model)
    norm = model.model.norm.requires_grad_(False)
    hidden = states(norm)
    torch.testing.assert_close(gradients(norm(hidden), hidden), gradients(own(norm, hidden), hidden))
    norm(hidden).sum().backward()
    assert norm.weight.grad is None


def test_a_feed_forward_layers_gradients_are_the_same_to_the_bit_by_as_many_products() -> None:
    model = llama()
    keep_less(model)
    layer = model.model.layers[0].mlp
    assert isinstance(layer, LlamaMLP)
    hidden = states(layer)
    found, counts = [], []
    for forward in (layer, lambda hidden: own(layer, hidden)):
        inputs = [hidden, *layer.parameters()]
        for tensor in inputs:
            tensor.grad = None
        with FlopCounterMode(display=False) as counter:
            forward(hidden).square().sum().backward()
        counts.append(counter.get_total_flops())
        found.append([tensor.grad for tensor in inputs])
    assert all(torch.equal(got, want) for got, want in zip(*found, strict=True))
    # three products forward, two for each of them backward, 2 operations a weight and token
    assert counts == [9 * 2 * HIDDEN * INNER * 2 * TOKENS] * 2


def test_an_adapter_on_the_last_product_is_not_run_twice() -> None:
    model = llama()
    adapted: Any = LoRASpec(r=2, target_modules=["down_proj"]).apply(model, [])
    flops = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            adapted(torch.arange(TOKENS)[None]).logits.sum().backward()
        flops.append(counter.get_total_flops())
        keep_less(model)  # for the second time around
    assert flops[0] == flops[1]


def test_a_layer_keeps_four_hidden_states_and_two_inner_states_a_token_less() -> None:
    kept = []
    for change in (lambda model: None, keep_less):
        model = llama()
        change(model)
        weights = {parameter.data_ptr() for parameter in model.parameters()}
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, weights: set[int] = weights, sizes: dict[int, int] = sizes) -> Tensor:
            if (place := tensor.untyped_storage()).data_ptr() not in weights:
                sizes[place.data_ptr()] = place.nbytes() // tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(torch.arange(TOKENS)[None]).logits
        kept.append(sum(sizes.values()))
        del output
    # Of two norms the normalized states and, in the linear layers, the output; the activation, and the product.
    layers = LAYERS * (4 * HIDDEN + 2 * INNER)
    assert kept[0] - kept[1] == TOKENS * (layers + 2 * HIDDEN)  # and of the norm at the end


def test_a_merged_layer_is_gone_as_soon_as_nobody_has_it() -> None:
    model = llama()
    adapted: Any = LoRASpec(r=2, target_modules=["down_proj"]).apply(model, [])
    keep_less(model)
    layer = next(iter(peft_layers(adapted).values()))
    gc.disable()  # it must not need to look for cycles: a large model's merged layers would pile up until then
    try:
        weight = weakref.ref(merged_layer(layer).weight)
        assert weight() is None
    finally:
        gc.enable()
