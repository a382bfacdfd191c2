"""Log-probs in chunks equal plain log-softmax, in value and in every gradient, and no whole logits tensor exists."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lion_lightning.data.packing.collate import collate
from lion_lightning.ops import logprobs as functional
from lion_lightning.ops.chunked_logprobs import LogitTransform
from lion_lightning.ops.logprobs import answer_view, group_views, pair_logps, token_logps
from lion_lightning.types import PackedBatch, Sample, SampleSegment, TokenLogps
from tests.marks import exhaustive
from tests.tiny import LargestTensor

TRANSFORMS = [
    LogitTransform(),
    LogitTransform(scale=0.25),
    LogitTransform(softcap=2.0),
    LogitTransform(scale=3.0, softcap=1.5),
]


def problem(dtype: torch.dtype = torch.float32, rows: int = 13) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((rows, 8), (37, 8), (37,)))
    targets = torch.randint(0, 37, (rows,))
    return *(tensor.to(dtype).requires_grad_() for tensor in (hidden, weight, bias)), targets  # type: ignore[return-value]


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, transform: LogitTransform) -> Tensor:
    """The definition, with autograd's own gradients."""
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    logits = logits * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    return logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("width", [1, 4, *exhaustive(13), 1000])
@pytest.mark.parametrize("with_bias", [True, *exhaustive(False)])
@pytest.mark.parametrize("kept", [0, 13 * 20, 13 * 37])  # of 37 tokens of the vocabulary none, some tiles and all
def test_values_of_tiles_and_all_gradients_equal_plain_log_softmax(
    transform: LogitTransform, width: int, with_bias: bool, kept: int
) -> None:
    hidden, weight, bias, targets = problem()
    parts = [hidden, weight, *([bias] if with_bias else [])]
    exact = [part.detach().double().requires_grad_() for part in parts]
    upstream = torch.linspace(-1, 2, len(targets))  # uneven, so that a misplaced row shows

    logps = token_logps(
        hidden,
        weight,
        targets,
        bias=bias if with_bias else None,
        transform=transform,
        logits_per_tile=len(targets) * width,
        logits_kept=kept,
    )
    expected = plain(exact[0], exact[1], exact[2] if with_bias else None, targets, transform)
    torch.testing.assert_close(logps.values.double(), expected, rtol=1e-6, atol=2e-6)

    actual = torch.autograd.grad((logps.values * upstream).sum(), parts)
    wanted = torch.autograd.grad((expected * upstream).sum(), exact)
    for got, want in zip(actual, wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-6)


def test_a_tile_smaller_than_the_targets_still_takes_one_token_of_the_vocabulary() -> None:
    hidden, weight, _, targets = problem()
    small, large = (token_logps(hidden, weight, targets, logits_per_tile=size).values for size in (1, 10**6))
    torch.testing.assert_close(small, large, rtol=1e-6, atol=1e-6)


def kept_logits(budget: int) -> int:
    """Numbers kept for the backward pass, the inputs and what is one a row left out."""
    hidden, weight, _, targets = problem()
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel() if tensor.dim() == 2 and tensor.shape[1] != 8 else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_logps(hidden, weight, targets, logits_per_tile=13 * 5, logits_kept=budget)
    return sum(sizes)


def test_of_the_logits_whole_tiles_are_kept_as_far_as_the_budget_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [kept_logits(13 * columns) for columns in (0, 4, 5, 14, 36, 37)] == [0, 0, 65, 130, 455, 481]
    monkeypatch.setattr(functional, "TARGETS_AT_ONCE", 7)  # two parts, with half of it each; tiles of 9 and 10 tokens
    assert kept_logits(13 * 37) == 7 * 27 + 6 * 37


def test_a_pass_without_gradients_keeps_no_tile_while_it_runs() -> None:
    hidden, weight, _, targets = problem()
    for kept, graph in ((2, True), (0, False)):  # tiles of 20 and 17 tokens
        with torch.profiler.profile() as seen, torch.set_grad_enabled(graph):
            token_logps(hidden, weight, targets, logits_per_tile=13 * 20, logits_kept=13 * 37)
        assert sum(event.name == "aten::empty_like" for event in seen.events()) == kept


def test_a_graph_that_is_kept_gives_the_same_gradients_again() -> None:
    hidden, weight, _, targets = problem()
    values = token_logps(hidden, weight, targets, logits_per_tile=13 * 5, logits_kept=13 * 20).values
    first, again = (torch.autograd.grad(values.sum(), [hidden, weight], retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, again))


def test_more_targets_than_are_taken_at_once_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, targets = problem()
    whole = token_logps(hidden, weight, targets, bias=bias, entropy=True)
    monkeypatch.setattr(functional, "TARGETS_AT_ONCE", 5)
    parts = token_logps(hidden, weight, targets, bias=bias, entropy=True)
    for got, want in zip(parts, whole, strict=True):
        torch.testing.assert_close(got, want)
    upstream = torch.linspace(-1, 2, len(targets))
    wanted = torch.autograd.grad((whole.values * upstream).sum(), [hidden, weight, bias])
    actual = torch.autograd.grad((parts.values * upstream).sum(), [hidden, weight, bias])
    for got, want in zip(actual, wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_hits_are_targets_that_are_the_most_probable_token() -> None:
    weight = torch.eye(3)
    hidden = torch.tensor([[5.0, 1.0, 0.0], [5.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    logps = token_logps(hidden, weight, torch.tensor([0, 1, 2]))
    assert logps.top1_correct is not None
    assert logps.top1_correct.tolist() == [True, False, True]
    assert not logps.top1_correct.requires_grad


def test_no_targets_give_empty_values_and_zero_gradients_not_nan() -> None:
    hidden, weight, bias, targets = problem(rows=0)
    logps = token_logps(hidden, weight, targets, bias=bias, entropy=True)
    assert [values is not None and values.shape for values in logps] == [(0,)] * 4
    grads = torch.autograd.grad(logps.values.sum(), [hidden, weight, bias])
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)


def test_gradients_that_nobody_asks_for_are_not_made() -> None:
    hidden, weight, _, targets = problem()
    frozen = weight.detach()
    values = token_logps(hidden, frozen, targets).values
    torch.autograd.backward(values.sum())
    assert frozen.grad is None
    assert hidden.grad is not None
    alone = torch.autograd.grad(token_logps(hidden.detach(), weight, targets).values.sum(), weight)[0]
    both = torch.autograd.grad(token_logps(hidden, weight, targets).values.sum(), weight)[0]
    assert torch.equal(alone, both)


def test_sums_are_fp32_whatever_the_default_dtype_is() -> None:
    """Lightning's bf16-true sets it around each step: a sum of a thousand terms would lose all but two digits."""
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(5, 16), torch.randn(1000, 16), torch.arange(5)
    expected = token_logps(hidden, weight, targets, entropy=True)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        found = token_logps(hidden, weight, targets, entropy=True)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found.values, expected.values)
    assert found.entropy is not None
    assert expected.entropy is not None
    assert torch.equal(found.entropy, expected.entropy)


def test_logits_of_a_bf16_head_are_fp32_before_the_logsumexp() -> None:
    hidden, weight, _, targets = problem(torch.bfloat16)
    values = token_logps(hidden, weight, targets).values
    logits = (hidden @ weight.T).detach()
    assert values.dtype == torch.float32
    torch.testing.assert_close(
        values, logits.float().log_softmax(-1).gather(1, targets[:, None]).squeeze(1), rtol=0, atol=1e-6
    )
    in_half = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1).float()
    assert (values - in_half).abs().max() > 1e-3  # a softmax in bf16 would differ by this much


@pytest.mark.parametrize("kept", [0, 13 * 37])
def test_autocast_runs_products_in_bf16_and_gives_gradients_in_the_weights_own_dtype(kept: int) -> None:
    hidden, weight, bias, targets = problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = token_logps(hidden, weight, targets, bias=bias, logits_kept=kept).values
    logits = (hidden.bfloat16() @ weight.bfloat16().T).float() + bias
    expected = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)
    grads = torch.autograd.grad(values.sum(), [hidden, weight, bias])
    assert {grad.dtype for grad in grads} == {torch.float32}
    for got, want in zip(grads, torch.autograd.grad(expected.sum(), [hidden, weight, bias]), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)  # a bf16 product has 8 bits


def test_weight_gradient_of_a_bf16_head_is_summed_in_fp32_over_the_targets() -> None:
    torch.manual_seed(0)
    # 4,096 equal rows of gradient: a running bf16 sum stops growing at 256 times the addend
    hidden = torch.ones(4096, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    values = token_logps(hidden, weight, torch.zeros(4096, dtype=torch.int64), logits_per_tile=2).values
    torch.autograd.backward(values.sum())
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [2048.0, -2048.0]  # 4,096 times (1 - softmax) = 1/2


def test_logits_of_a_thousand_do_not_overflow() -> None:
    logps = token_logps(torch.tensor([[1000.0], [-1000.0]]), torch.tensor([[1.0], [0.0]]), torch.tensor([0, 0]))
    assert logps.values.tolist() == [0.0, -1000.0]


def test_no_tensor_of_targets_by_vocabulary_exists_in_forward_or_backward() -> None:
    targets, vocabulary, size, per_tile = 512, 8_000, 16, 2**18
    hidden = torch.randn(targets, size, requires_grad=True)
    weight = torch.randn(vocabulary, size, requires_grad=True)
    ids = torch.randint(0, vocabulary, (targets,))
    with LargestTensor() as largest:
        torch.autograd.backward(token_logps(hidden, weight, ids, logits_per_tile=per_tile).values.sum())
    whole = targets * vocabulary
    assert vocabulary * size < largest.numel <= per_tile < whole / 15
    with LargestTensor() as naive:
        plain(hidden, weight, None, ids, LogitTransform())
    assert naive.numel == whole  # the recorder does see such tensors


def test_collisions_are_the_log_of_the_summed_squares_of_all_probabilities() -> None:
    hidden, weight, _, targets = problem()
    logps = token_logps(hidden, weight, targets, logits_per_tile=100)
    expected = (hidden @ weight.T).softmax(-1).square().sum(-1).log()
    assert logps.log_collision_prob is not None
    torch.testing.assert_close(logps.log_collision_prob, expected, rtol=1e-5, atol=1e-5)
    assert not logps.log_collision_prob.requires_grad


def entropies(logits: Tensor, transform: LogitTransform) -> Tensor:
    """The definition, in fp64."""
    logits = logits.double() * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("width", [1, 4, 1000])
@pytest.mark.parametrize("kept", [0, 13 * 20])
def test_entropy_is_that_of_the_whole_softmax_and_nothing_else_changes(
    transform: LogitTransform, width: int, kept: int
) -> None:
    hidden, weight, bias, targets = problem()
    arguments: dict[str, Any] = {"bias": bias, "transform": transform, "logits_kept": kept}
    asked, not_asked = (
        token_logps(hidden, weight, targets, entropy=wanted, logits_per_tile=13 * width, **arguments)
        for wanted in (True, False)
    )
    assert asked.entropy is not None
    assert not_asked.entropy is None
    assert (asked.entropy.dtype, asked.entropy.requires_grad) == (torch.float32, False)
    expected = entropies(hidden @ weight.T + bias, transform)
    torch.testing.assert_close(asked.entropy.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(asked.values, not_asked.values)
    pair = [torch.autograd.grad(logps.values.sum(), [hidden, weight, bias]) for logps in (asked, not_asked)]
    assert all(map(torch.equal, *pair))


def test_entropy_of_bf16_products_is_that_of_their_logits() -> None:
    hidden, weight, _, targets = problem(torch.bfloat16)
    logps = token_logps(hidden, weight, targets, entropy=True, logits_per_tile=13 * 5)
    assert logps.entropy is not None
    torch.testing.assert_close(
        logps.entropy.double(), entropies(hidden @ weight.T, LogitTransform()), rtol=1e-5, atol=1e-5
    )


def test_entropy_of_certain_and_of_uniform_tokens_and_of_logits_of_a_thousand() -> None:
    # rising and falling logits, in tiles of one token: the maximum is raised in each tile, or never
    hidden = torch.tensor([[1000.0], [-1000.0], [0.0], [math.log(3.0)]])
    weight = torch.tensor([[-1.0], [0.0], [1.0]])
    logps = token_logps(hidden, weight, torch.zeros(4).long(), entropy=True, logits_per_tile=1)
    assert logps.entropy is not None
    # the last: 1/13, 3/13 and 9/13
    last = math.log(13) - 3 / 13 * math.log(3) - 9 / 13 * math.log(9)
    torch.testing.assert_close(logps.entropy, torch.tensor([0.0, 0.0, math.log(3.0), last]))


@pytest.mark.parametrize("width", [1, 3])
def test_entropy_of_tokens_that_the_bias_forbids_is_that_of_the_others(width: int) -> None:
    hidden, weight = torch.zeros(2, 1), torch.ones(5, 1)
    bias = torch.tensor([-torch.inf, -torch.inf, 0.0, 0.0, -torch.inf])
    logps = token_logps(hidden, weight, torch.tensor([2, 3]), bias=bias, entropy=True, logits_per_tile=2 * width)
    assert logps.entropy is not None
    torch.testing.assert_close(logps.entropy, torch.full((2,), math.log(2.0)))


def tree(*lengths: int, pairs: tuple[tuple[int, int], ...] = (), index: int = 0, skipped: int = -1) -> Sample:
    """A prompt and its answers, supervised but for the first token of one of them."""
    parts = []
    for number, length in enumerate(lengths):
        supervised = np.full(length, number > 0)
        supervised[: number == skipped] = False
        parts.append(SampleSegment(np.arange(length, dtype=np.int32), supervised, 0 if number else -1))
    return Sample(tuple(parts), index, values=(1.0,) * (len(lengths) - 1), pairs=pairs)


def two_trees() -> PackedBatch:
    """Answers of 2 and 3, then of 4, 1 and 2 tokens, all but the first token of the third answer supervised."""
    first = tree(3, 2, 3, pairs=((0, 1),))
    return collate([first, tree(2, 4, 1, 2, pairs=((0, 1), (2, 1)), index=1, skipped=1)], 17)


VALUES = -torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0])


def test_pair_logps_give_each_side_its_tokens_sums_and_counts() -> None:
    pair = pair_logps(TokenLogps(VALUES, VALUES > 0, 10 * VALUES), two_trees())
    # answers are (1, 2), (4, 8, 16), (32, 64, 128), (256), (512, 1024); pairs 0 over 1, 2 over 3, 4 over 3
    assert pair.chosen.sums.tolist() == [-3.0, -224.0, -1536.0]
    assert pair.rejected.sums.tolist() == [-28.0, -256.0, -256.0]
    assert pair.chosen.counts.tolist() == [2.0, 3.0, 2.0]
    assert pair.rejected.counts.tolist() == [3.0, 1.0, 1.0]
    assert pair.chosen.means.tolist() == [-1.5, pytest.approx(-224 / 3), -768.0]
    assert pair.rejected.tokens.values.tolist() == [-4.0, -8.0, -16.0, -256.0, -256.0]
    assert pair.rejected.owners.tolist() == [0, 0, 0, 1, 2]
    drawn = pair.chosen.tokens.log_collision_prob
    assert drawn is not None
    assert pair.chosen.sum(drawn).tolist() == [-30.0, -2240.0, -15360.0]


def test_first_adds_up_the_first_targets_of_each_answer() -> None:
    pair = pair_logps(TokenLogps(VALUES), two_trees())
    shorter = torch.minimum(pair.chosen.counts, pair.rejected.counts)
    assert pair.chosen.first(shorter).tolist() == [-3.0, -32.0, -512.0]  # the first 2 of 2, 1 of 3, 1 of 2
    assert pair.rejected.first(shorter).tolist() == [-12.0, -256.0, -256.0]  # the first 2 of 3; 1 of 1


def test_a_view_has_the_shape_of_its_positions_and_answers_as_often_as_they_are_named() -> None:
    view = answer_view(two_trees(), [[4, 0], [3, 4]])
    answers = view.logps(TokenLogps(VALUES))
    assert answers.sums.tolist() == [[-1536.0, -3.0], [-256.0, -1536.0]]
    assert answers.counts.tolist() == [[2.0, 2.0], [1.0, 2.0]]
    assert view.owners.tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert answers.first(torch.tensor([[1.0, 5.0], [0.0, 2.0]])).tolist() == [[-512.0, -3.0], [0.0, -1536.0]]


def test_answers_are_taken_in_any_order_and_as_often_as_they_are_named() -> None:
    answers = answer_view(two_trees(), [[0, 1], [2, 4]]).logps(TokenLogps(VALUES, VALUES < -2))
    taken = answers.take(torch.tensor([3, 0, 0]))
    assert taken.tokens.values.tolist() == [-512.0, -1024.0, -1.0, -2.0, -1.0, -2.0]
    assert taken.owners.tolist() == [0, 0, 1, 1, 2, 2]
    assert taken.counts.tolist() == [2.0, 2.0, 2.0]
    assert taken.tokens.top1_correct is not None
    assert taken.tokens.top1_correct.tolist() == [True, True, False, False, False, False]
    assert answers.take(torch.zeros(0, dtype=torch.int64)).sums.shape == (0,)


def test_the_gradient_of_an_answer_in_two_pairs_is_the_sum_of_both() -> None:
    values = VALUES.clone().requires_grad_()
    sums = pair_logps(TokenLogps(values), two_trees()).rejected.sums
    gradient = torch.autograd.grad(sums @ torch.tensor([1.0, 10.0, 100.0]), values)[0]
    assert gradient.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 110.0, 0.0, 0.0]


def test_sums_first_read_without_gradients_have_them_still() -> None:
    values = VALUES.clone().requires_grad_()
    chosen = pair_logps(TokenLogps(values), two_trees()).chosen
    with torch.no_grad():  # as where a loss works out a weight first
        assert chosen.sums.sum().item() == -1763.0
    assert torch.autograd.grad(chosen.sums.sum(), values)[0].sum().item() == 7.0  # 2 + 3 + 2 targets


def test_a_rank_without_rows_has_no_pairs_but_a_graph() -> None:
    values = torch.zeros(0, requires_grad=True)
    pair = pair_logps(TokenLogps(values, values > 0, values.detach()), two_trees().without_targets())
    assert len(pair.chosen.sums) == 0
    pair.chosen.sums.sum().backward()  # type: ignore[no-untyped-call]


def test_groups_of_a_size_come_together_with_their_values() -> None:
    three, one, two = tree(1, 1, 2, 1), tree(2, 1, index=1), tree(1, 2, 1, index=2)
    samples = [replace(three, values=(0.5, 0.25, 1.0)), replace(one, values=(0.0,)), replace(two, values=(2.0, 3.0))]
    batch = collate([*samples, replace(tree(2, 1, 1, index=3), values=(4.0, -5.0))], 20)
    views = group_views(batch)
    assert [view.values.tolist() for view in views] == [[[0.0]], [[2.0, 3.0], [4.0, -5.0]], [[0.5, 0.25, 1.0]]]
    # targets, in the order of the batch: 1; 2, 4; 8 | 16 | 32, 64; 128 | 256; 512
    found = [view.logps(TokenLogps(VALUES[:10])).sums.tolist() for view in views]
    assert found == [[[-16.0]], [[-96.0, -128.0], [-256.0, -512.0]], [[-1.0, -6.0, -8.0]]]


def test_a_rank_without_rows_has_a_view_of_no_groups_but_a_graph() -> None:
    [view] = group_views(two_trees().without_targets())
    values = torch.zeros(0, requires_grad=True)
    sums = view.logps(TokenLogps(values)).sums
    assert view.values.shape == sums.shape == (0, 2)
    sums.sum().backward()  # type: ignore[no-untyped-call]
