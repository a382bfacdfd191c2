"""What a step costs, in operations: seconds depend on the machine, these do not. Speeds are measured in benchmarks/."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lion_lightning.ops import logprobs as functional
from lion_lightning.ops.attention import attend_sdpa
from lion_lightning.ops.heads import Heads
from lion_lightning.ops.layout import RowLayout
from lion_lightning.ops.logprobs import pair_logps
from lion_lightning.types import PackedBatch, segment_table
from tests.tiny import VOCABULARY, pairs, policy, row

HIDDEN, FFN, HEADS, KEY_HEADS, SIZE, LAYERS = 32, 48, 4, 2, 8, 2
WEIGHTS = LAYERS * (2 * HIDDEN * HEADS * SIZE + 2 * HIDDEN * KEY_HEADS * SIZE + 3 * HIDDEN * FFN)
"""In matrices that every token is multiplied with: queries and outputs, keys and values, the feed-forward's three."""
PAIRS = ((9, 4, 7), (3, 12, 5))
PRODUCTS = ("aten.mm", "aten.addmm", "aten.addmm_")
"""Attention is left out: PyTorch does not count its kernel on a CPU."""


def products(run: Callable[[], Any]) -> int:
    """FLOPs of the matrix products in a call."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _accumulated}) as counter:
        run()
    return sum(flops for name, flops in counter.get_flop_counts()["Global"].items() if str(name) in PRODUCTS)


def _accumulated(total: Any, left: Any, right: Any, *_: Any, **__: Any) -> int:
    """What PyTorch's counter does not know: ``total.addmm_(left, right)``."""
    return 2 * int(left[0]) * int(left[1]) * int(right[1])


def train(model: Any, batch: PackedBatch) -> None:
    sides = pair_logps(model(batch), batch)
    torch.autograd.backward((sides.chosen.sums - sides.rejected.sums).sum())


@pytest.mark.parametrize(("kept", "head"), [(functional.LOGITS_KEPT, 6), (0, 8)])
def test_a_step_on_pairs_multiplies_each_prompt_once_and_pads_nothing(
    kept: int, head: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functional, "LOGITS_KEPT", kept)
    batch = pairs(*PAIRS)
    tokens = sum(map(sum, PAIRS))  # a prompt once; padded pairs would be 4 sequences of 16
    targets = sum(chosen + rejected for _, chosen, rejected in PAIRS)
    seen: list[int] = []
    model = policy()
    model.causal_lm.get_input_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0].numel()))
    flops = products(lambda: train(model, batch))
    assert seen == [tokens] == [40]
    # A weight costs 2 a token forward, 2 for its input's gradient, 2 for its own; logits that are not kept, 2 again.
    assert flops == 6 * WEIGHTS * tokens + head * VOCABULARY * HIDDEN * targets


def test_a_reference_pass_costs_a_forward_and_the_head_on_answers_alone() -> None:
    batch, model = pairs(*PAIRS), policy()
    with torch.no_grad():
        flops = products(lambda: model(batch))
    targets = sum(chosen + rejected for _, chosen, rejected in PAIRS)
    assert flops == 2 * WEIGHTS * len(batch.input_ids) + 2 * VOCABULARY * HIDDEN * targets


def test_a_step_on_documents_costs_the_same_packed_as_alone() -> None:
    lengths, model = (5, 8, 3), policy()

    def cost(batch: PackedBatch) -> int:
        return products(lambda: torch.autograd.backward(model(batch).values.sum()))

    alone = sum(cost(row((length,), (-1,))) for length in lengths)
    assert cost(row(lengths, (-1, -1, -1))) == alone
    assert alone == 6 * WEIGHTS * 16 + 6 * VOCABULARY * HIDDEN * 13  # a document's first token is no target


class _Written(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the elements that operations write, views apart."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            found = result if isinstance(result, tuple | list) else [result]
            self.elements += sum(one.numel() for one in found if isinstance(one, torch.Tensor))
        return result


def written(segments: int, tokens: int = 64) -> int:
    """Elements that attention over a row of equal documents writes, backward included."""
    layout = RowLayout(segment_table([tokens // segments] * segments, [-1] * segments))
    query, key, value = (
        torch.randn(heads, tokens, SIZE, requires_grad=True) for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    with _Written() as counted:
        torch.autograd.backward(attend_sdpa(Heads(query, key, value), layout).sum())
    return int(counted.elements)


@pytest.mark.parametrize("segments", [8, 16])
def test_attention_goes_over_a_row_as_often_for_many_documents_as_for_two(segments: int) -> None:
    # A slice a segment would write a gradient of the whole row for each: 4 and 8 times as much.
    assert written(segments) <= 1.2 * written(2)
