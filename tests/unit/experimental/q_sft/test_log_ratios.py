"""The largest log-ratio of two heads over the vocabulary, against whole tables of log-probs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lion_lightning.experimental.q_sft.log_ratios import Head, max_log_ratio
from lion_lightning.ops.chunked_logprobs import LogitTransform
from tests.tiny import LargestTensor


def head(seed: int, rows: int = 7, vocabulary: int = 50, hidden: int = 8, **more: object) -> Head:
    made = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocabulary, hidden, generator=made)
    return Head(torch.randn(rows, hidden, generator=made), weight, **more)  # type: ignore[arg-type]


def table(head: Head) -> Tensor:
    """``(rows, vocabulary)`` log-probs."""
    logits = head.states.float() @ head.weight.float().T + (0 if head.bias is None else head.bias)
    return head.transform.apply(logits).log_softmax(-1)


def slowly(numerator: Head, denominator: Head, floor: float) -> list[float]:
    found = []
    for log_p, log_q in zip(table(numerator), table(denominator), strict=True):
        supported = [v for v in range(len(log_q)) if log_q[v] >= math.log(floor)] or [int(log_q.argmax())]
        found.append(max(float(log_p[v] - log_q[v]) for v in supported))
    return found


def uniform(rows: int) -> Head:
    """A head whose log-probs are what its states are: the vocabulary is as large as the hidden size."""
    return Head(torch.zeros(rows, 4), torch.eye(4))


@pytest.mark.parametrize("floor", [1e-6, 0.02, 0.9])
@pytest.mark.parametrize("per_tile", [None, 70])  # 10 of 50 tokens at once
def test_it_is_the_maximum_over_the_tokens_that_the_second_model_knows(floor: float, per_tile: int | None) -> None:
    bias = torch.linspace(-2, 2, 50)
    one, other = head(1, bias=bias), head(2, hidden=5, transform=LogitTransform(scale=0.5, softcap=3.0))
    found = max_log_ratio(one, other, floor, per_tile)
    torch.testing.assert_close(found, torch.tensor(slowly(one, other, floor)), rtol=1e-5, atol=1e-5)


def test_where_no_token_has_the_floor_the_most_probable_one_counts() -> None:
    known = Head(torch.tensor([[0.3, 0.3, 0.4, 0.0]]).log().clamp(min=-99), torch.eye(4))
    assert max_log_ratio(uniform(1), known, 0.5).exp().item() == pytest.approx(0.25 / 0.4)


def test_a_rare_token_that_the_uniform_rest_leaks_to_is_found_without_a_floor_alone() -> None:
    """50,000 tokens, y = 0.5: every other token gets 1e-5, and one with 1e-6 under the behaviour has a ratio of 10."""
    learned, behaviour = torch.full((50_000,), 0.5 / 49_999), torch.full((50_000,), (1 - 0.5 - 1e-6) / 49_998)
    learned[0], behaviour[0], behaviour[1] = 0.5, 0.5, 1e-6
    heads = [Head(torch.ones(1, 1), probs.log()[:, None]) for probs in (learned, behaviour)]
    assert max_log_ratio(heads[0], heads[1], 1e-7).exp().item() == pytest.approx(10, rel=1e-3)
    assert max_log_ratio(heads[0], heads[1], 1e-5).exp().item() == pytest.approx(1, rel=1e-3)


def test_no_tensor_holds_a_number_for_each_row_and_token() -> None:
    one, other = head(1, 64, 4096), head(2, 64, 4096)
    with LargestTensor() as largest:
        max_log_ratio(one, other, 0.01, 2**12)
    assert largest.numel <= 4096 * 8 < 64 * 4096  # a view of a weight
    assert not max_log_ratio(one._replace(states=one.states.requires_grad_()), other, 0.01).requires_grad


def test_no_rows_have_no_ratios() -> None:
    assert max_log_ratio(uniform(0), uniform(0), 0.1).shape == (0,)
