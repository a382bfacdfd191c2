"""Inputs of linear layers that are made again: the same gradients to the bit, and only the sources kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lion_lightning.ops.attention import Heads, attend_sdpa
from lion_lightning.ops.layout import RowLayout
from lion_lightning.ops.remade import linear_forward, with_recipe
from lion_lightning.types import segment_table

ROWS, WIDTH, OUT = 5, 4, 3


def problem(*shape: int, bias: bool = False) -> tuple[Tensor, nn.Linear]:
    torch.manual_seed(0)
    return torch.randn(*shape, WIDTH, requires_grad=True), nn.Linear(WIDTH, OUT, bias=bias)


def doubled(source: Tensor) -> Tensor:
    """What keeps nothing for its own backward pass, and has a recipe."""
    return with_recipe(source * 2, lambda kept: kept * 2, source)


def gradients(source: Tensor, layer: nn.Linear, output: Tensor) -> tuple[Tensor, ...]:
    upstream = torch.linspace(-1, 2, output.numel()).view_as(output)
    return torch.autograd.grad((output * upstream).sum(), [source, *layer.parameters()], retain_graph=True)


def kept(run: Any) -> list[Tensor]:
    """What passes the hooks of whoever stands around, to offload it say."""
    found: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return found


def holds(tensors: list[Tensor], one: Tensor) -> bool:
    return any(tensor.data_ptr() == one.data_ptr() for tensor in tensors)


@pytest.mark.parametrize("shape", [(ROWS,), (1, ROWS), (2, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_a_plain_layer_to_the_bit_by_as_many_products(
    shape: tuple[int, ...], bias: bool
) -> None:
    source, layer = problem(*shape, bias=bias)
    found, counts = [], []
    for forward in (partial(linear_forward, layer), layer):
        with FlopCounterMode(display=False) as counter:
            output = forward(doubled(source))
            found.append((output, *gradients(source, layer, output)))
        counts.append(counter.get_total_flops())
    assert all(map(torch.equal, *found))
    assert counts[0] == counts[1] > 0


def test_the_source_is_kept_instead_of_the_input() -> None:
    source, layer = problem(1, ROWS)
    hidden = doubled(source)
    tensors = kept(lambda: linear_forward(layer, hidden))
    assert holds(tensors, source)
    assert not holds(tensors, hidden)
    assert holds(kept(lambda: layer(hidden)), hidden)


def test_a_view_of_all_of_it_has_the_recipe_and_one_of_a_part_or_in_another_order_has_not() -> None:
    source, layer = problem(WIDTH, WIDTH)
    hidden = doubled(source)
    views = [hidden.view(WIDTH * WIDTH, WIDTH)[None], hidden[1:], hidden.transpose(0, 1)]
    for view, is_whole in zip(views, (True, False, False), strict=True):
        tensors = kept(partial(linear_forward, layer, view))
        assert holds(tensors, source) == is_whole
        results = (gradients(source, layer, forward(view)) for forward in (partial(linear_forward, layer), layer))
        assert all(map(torch.equal, *results))


def test_an_input_changed_in_place_is_kept_as_it_is() -> None:
    source, layer = problem(ROWS)
    hidden = doubled(source).add_(1)
    assert holds(kept(lambda: linear_forward(layer, hidden)), hidden)
    results = (gradients(source, layer, forward(hidden)) for forward in (partial(linear_forward, layer), layer))
    assert all(map(torch.equal, *results))


def test_a_source_changed_in_place_is_told_and_not_taken() -> None:
    source, layer = problem(ROWS)
    inner = source * 1
    output = linear_forward(layer, doubled(inner))
    with torch.no_grad():
        inner.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(output.sum())


def test_a_frozen_layer_keeps_neither_and_passes_its_gradient_on() -> None:
    source, layer = problem(ROWS)
    layer.requires_grad_(False)
    hidden = doubled(source)
    tensors = kept(lambda: linear_forward(layer, hidden))
    assert not holds(tensors, source)
    assert not holds(tensors, hidden)
    assert torch.equal(
        torch.autograd.grad(linear_forward(layer, hidden).sum(), source)[0], (2 * layer.weight.sum(0)).expand(ROWS, -1)
    )


def test_under_autocast_a_layer_is_as_it_was() -> None:
    source, layer = problem(ROWS)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [forward(doubled(source)) for forward in (partial(linear_forward, layer), layer)]
    assert {output.dtype for output in outputs} == {torch.bfloat16}
    results = (gradients(source, layer, output.float()) for output in outputs)
    assert all(map(torch.equal, *results))


def test_nothing_is_noted_where_no_gradient_is_wanted() -> None:
    source, layer = problem(ROWS)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            hidden = doubled(source)
            assert not hasattr(hidden, "recipe")
            assert torch.equal(linear_forward(layer, hidden), layer(hidden))


def test_attention_of_a_row_of_documents_is_kept_once() -> None:
    tokens, heads, size = 12, 2, 4
    query, key, value = (torch.randn(heads, tokens, size, requires_grad=True) for _ in range(3))
    layout = RowLayout(segment_table([5, 7], [-1, -1]))
    layer = nn.Linear(heads * size, OUT, bias=False)

    def run(forward: Any) -> Tensor:
        output = attend_sdpa(Heads(query, key, value), layout).transpose(0, 1)[None]
        result: Tensor = forward(output.reshape(1, tokens, heads * size).contiguous())
        return result

    sizes = []
    for forward in (layer, partial(linear_forward, layer)):
        places = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in kept(partial(run, forward))
        }
        sizes.append(sum(places.values()))
    assert sizes[0] - sizes[1] == tokens * heads * size * 4
    inputs = [query, key, value, layer.weight]
    results = (
        torch.autograd.grad(run(forward).square().sum(), inputs) for forward in (layer, partial(linear_forward, layer))
    )
    assert all(map(torch.equal, *results))
