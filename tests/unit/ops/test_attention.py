"""Packed rows give the log-probs and gradients of each document alone, by every attention path."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen as torch_varlen
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.ops import attention as attention_module
from lion_lightning.ops.attention import PATHS, attend_dense, attend_sdpa
from lion_lightning.ops.heads import Heads
from lion_lightning.ops.layout import RowLayout
from lion_lightning.ops.varlen import attend_flash, attend_varlen
from lion_lightning.types import segment_table
from tests.marks import exhaustive
from tests.tiny import (
    DOCUMENTS,
    LEARNED_POSITIONS,
    SOFTCAPPED,
    TREE,
    alone,
    assert_as_alone,
    config,
    gradients,
    policy,
    row,
)

# The paths that run on a CPU, where `lion` takes `lion_sdpa`; "eager" runs padded.
HERE = ("lion", "lion_dense", "eager", *exhaustive("lion_sdpa"))
PREFIXED = ((4, 6, 5, 3, 5), (-1, -1, 1, 1, -1), (False, True, False, False, True))
"""A document, a prompt that is seen whole with two answers, and a document all of whose tokens see each other."""
SHAPES: dict[str, Any] = {
    "grouped_heads": {},
    "sliding_window_shorter_than_documents": {"model_type": "mistral", "sliding_window": 4},
    "softcapped_scores": SOFTCAPPED,
    "learned_positions": LEARNED_POSITIONS,
    "sinks": {"model_type": "gpt_oss", "head_dim": 8, "num_local_experts": 4, "sliding_window": 4},
    "scaled_logits": {"model_type": "granite", "logits_scaling": 3.0, "attention_multiplier": 0.2},
}


@pytest.mark.parametrize("placed", [DOCUMENTS, TREE], ids=["documents", "tree"])
@pytest.mark.parametrize(
    ("attention", "shape"),
    [
        *product(["lion"], SHAPES),
        # the shape with a window, soft caps and a head size of its own, and positions where padding would show
        *product(["lion_dense", "eager"], ["softcapped_scores"]),
        ("eager", "learned_positions"),
        *exhaustive(*product(["lion_dense"], sorted({*SHAPES} - {"softcapped_scores"}))),
        *exhaustive(*product(["eager"], sorted({*SHAPES} - {"softcapped_scores", "learned_positions"}))),
        # transformers refuses GPT-OSS any attention with sdpa in its name
        *exhaustive(*product(["lion_sdpa"], sorted({*SHAPES} - {"sinks"}))),
    ],
)
def test_packed_log_probs_and_gradients_equal_each_document_alone(attention: str, shape: str, placed: Any) -> None:
    model = policy(attention=attention, **SHAPES[shape])
    assert model.packed == (attention != "eager")
    assert_as_alone(model, row(*placed), attention="eager")


@pytest.mark.parametrize("attention", HERE)
def test_changing_one_document_leaves_the_others_log_probs_bit_equal(attention: str) -> None:
    model = policy(attention=attention)
    batch = row(*DOCUMENTS)
    changed = batch.input_ids.clone()
    changed[:7] = (changed[:7] + 1) % 101
    with torch.no_grad():
        before, after = (model(replace(batch, input_ids=ids)).values for ids in (batch.input_ids, changed))
    others = batch.target_segments > 0
    assert torch.equal(before[others], after[others])
    assert not torch.isclose(before[~others], after[~others]).any()


def test_one_answer_never_sees_the_other_but_both_see_the_prompt() -> None:
    model = policy()
    batch = row(*TREE)
    with torch.no_grad():
        before = model(batch).values
        answer, prompt = batch.input_ids.clone(), batch.input_ids.clone()
        answer[12:21] += 1  # the first answer
        prompt[8] += 1
        by_answer, by_prompt = (model(replace(batch, input_ids=ids)).values for ids in (answer, prompt))
    second = batch.target_segments == 3
    assert torch.equal(before[second], by_answer[second])
    assert not torch.isclose(before[second], by_prompt[second]).any()


def test_lora_log_probs_of_a_packed_row_equal_each_document_alone() -> None:
    torch.manual_seed(0)
    model = PolicySpec(config=config(), lora=LoRASpec(r=4)).build()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    batch = row(*TREE)
    packed = model(batch).values
    adapted = gradients(model, packed)
    expected = alone(model.model, batch)
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-5)
    for name, gradient in gradients(model, expected).items():
        # sums of fp32 products of up to 1e2 in another order: 1.1e-5 of the largest on one of the CPUs that ran this
        torch.testing.assert_close(adapted[name], gradient, rtol=1e-4, atol=5e-5 * float(gradient.abs().max()))
    with model.model.disable_adapter(), torch.no_grad():  # type: ignore[operator]
        assert not torch.allclose(model(batch).values, packed)


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_without_a_layout_is_the_plain_model_so_that_other_code_can_use_it(shape: str) -> None:
    model = policy(attention="lion", **SHAPES[shape]).causal_lm
    ids = row(*DOCUMENTS).input_ids[None]
    padded = torch.ones_like(ids)
    padded[0, :4] = 0
    with torch.no_grad():
        own = model(input_ids=ids, attention_mask=padded).logits[0, 4:]
        model.set_attn_implementation("eager")
        expected = model(input_ids=ids, attention_mask=padded).logits[0, 4:]
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)


def heads(layout: RowLayout, key_heads: int = 2, size: int = 8, **kind: Any) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    shapes = ((4, layout.tokens, size), (key_heads, layout.tokens, size), (key_heads, layout.tokens, size))
    query, key, value = (torch.randn(shape, **kind) for shape in shapes)
    return query, key, value


def test_layers_share_an_answers_mask_and_keep_no_repeated_keys() -> None:
    layout = RowLayout(segment_table(*TREE))
    kept: dict[int, Tensor] = {}
    query, key, value = (tensor.requires_grad_() for tensor in heads(layout))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        outputs = [attend_sdpa(Heads(query, key, value), layout) for _ in range(3)]
    masks = [tensor for tensor in kept.values() if tensor.shape[-2:] in ((9, 14), (4, 9))]  # answers by their contexts
    assert sorted(tensor.shape[-2] for tensor in masks) == [4, 9]
    contexts = [tensor for tensor in kept.values() if tensor.shape[-2:] in ((14, 8), (9, 8)) and tensor.dim() == 4]
    assert contexts
    answers = [tensor for tensor in contexts if tensor.stride(1) == 0]
    assert {tensor.untyped_storage().nbytes() for tensor in answers} == {2 * 14 * 8 * 4, 2 * 9 * 8 * 4}
    assert torch.equal(outputs[0], outputs[2])


def per_sequence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    scale: Any,
    window: tuple[int, int],
) -> Tensor:
    """What a variable-length kernel computes, by its documentation: aligned at the bottom right, keys in a window."""
    assert (max_q, max_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
    assert cu_q.dtype == cu_k.dtype == torch.int32
    rows = []
    for q, k in zip(cu_q.unfold(0, 2, 1).tolist(), cu_k.unfold(0, 2, 1).tolist(), strict=True):
        distance = torch.arange(k[1] - k[0] - (q[1] - q[0]), k[1] - k[0])[:, None] - torch.arange(k[1] - k[0])
        left, right = (len(distance.T) if reach < 0 else reach for reach in window)  # -1: all
        mask = (-right <= distance) & (distance <= left)
        queries, keys, values = (t[slice(*span)].transpose(0, 1) for t, span in ((query, q), (key, k), (value, k)))
        rows.append(scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale).transpose(0, 1))
    return torch.cat(rows)


def torch_2_10(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, is_causal: bool = False
) -> Tensor:
    assert query.shape[1] == key.shape[1]
    return per_sequence(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, None, (-1, 0 if is_causal else -1))


def torch_2_11(
    query: Any,
    key: Any,
    value: Any,
    cu_seq_q: Any,
    cu_seq_k: Any,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    assert query.shape[1] == key.shape[1]
    return per_sequence(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size)


def torch_2_12(*args: Any, enable_gqa: bool = False, window_size: tuple[int, int] = (-1, -1), scale: Any = None) -> Any:
    query, key, value = args[0], *(tensor.repeat_interleave(2, dim=1) for tensor in args[1:3])
    assert enable_gqa
    return torch_2_11(query, key, value, *args[3:], scale=scale, window_size=window_size)


@pytest.mark.parametrize(
    "placed",
    [DOCUMENTS, TREE, PREFIXED, (*DOCUMENTS, (True,) * 4)],
    ids=["documents", "tree", "prefixed", "bidirectional"],
)
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(
    ("kernel", "window"),
    [(torch_2_10, None), (torch_2_11, None), (torch_2_11, 3), (torch_2_12, None), (torch_2_12, 3)],
)
def test_varlen_arguments_fit_each_torch_release(
    monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Tensor], window: int | None, scale: float | None, placed: Any
) -> None:
    monkeypatch.setattr(torch_varlen, "varlen_attn", kernel)
    layout = RowLayout(segment_table(*placed))
    tensors = Heads(*heads(layout), scale, window)
    expected = attend_dense(tensors, layout)
    torch.testing.assert_close(attend_varlen(tensors, layout), expected, rtol=0, atol=1e-6)


def flash_attn(*args: Any, softmax_scale: Any, causal: bool, window_size: tuple[int, int], softcap: float) -> Tensor:
    assert causal == (window_size[1] == 0)
    assert softcap == 0.0
    query, key, value = args[0], *(tensor.repeat_interleave(2, dim=1) for tensor in args[1:3])
    lengths: Any = args[3:]
    return torch_2_11(query, key, value, *lengths, scale=softmax_scale, window_size=window_size)


@pytest.mark.parametrize("placed", [TREE, PREFIXED], ids=["tree", "prefixed"])
@pytest.mark.parametrize("window", [None, 3])
def test_flash_arguments_are_those_of_its_documentation(
    monkeypatch: pytest.MonkeyPatch, window: int | None, placed: Any
) -> None:
    package = types.ModuleType("flash_attn")
    package.flash_attn_varlen_func = flash_attn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    layout = RowLayout(segment_table(*placed))
    tensors = Heads(*heads(layout), 0.3, window)
    torch.testing.assert_close(attend_flash(tensors, layout), attend_dense(tensors, layout), rtol=0, atol=1e-6)


def test_varlen_refuses_what_its_kernel_would_silently_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_varlen, "varlen_attn", torch_2_10)
    layout = RowLayout(segment_table(*DOCUMENTS))
    with pytest.raises(ValueError, match=r"torch >= 2\.11 for a sliding window; use lion_sdpa"):
        attend_varlen(Heads(*heads(layout), window=3), layout)
    with pytest.raises(ValueError, match="soft-capped"):
        attend_varlen(Heads(*heads(layout), softcap=30.0), layout)


def with_sinks(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, window: int | None, both: bool) -> Tensor:
    """One segment by the definition: a softmax over the keys and one more score per head, which is then dropped."""
    key, value = (tensor.repeat_interleave(2, dim=0) for tensor in (key, value))
    places = torch.arange(key.shape[1])
    distance = places[-query.shape[1] :, None] - places[None, :]
    hidden = (distance < (-len(places) if both else 0)) | (distance.abs() >= (window or len(places)))
    scores = (0.3 * query @ key.transpose(1, 2)).masked_fill(hidden, float("-inf"))
    scores = torch.cat([scores, sinks[:, None, None].expand(-1, query.shape[1], 1)], dim=-1)
    return scores.softmax(-1)[..., :-1] @ value


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("placed", [TREE, PREFIXED], ids=["tree", "prefixed"])
@pytest.mark.parametrize("attend", [attend_sdpa, attend_dense, attend_varlen])
def test_sinks_and_their_gradients_are_those_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, attend: Any, placed: Any, window: int | None
) -> None:
    monkeypatch.setattr(torch_varlen, "varlen_attn", torch_2_12)
    layout = RowLayout(segment_table(*placed))
    query, key, value = (tensor.double().requires_grad_() for tensor in heads(layout))
    sinks = torch.tensor([-1.0, 0.0, 2.0, 5.0], dtype=torch.float64, requires_grad=True)
    parts = []
    for segment, access in zip(layout.segments, layout.accesses, strict=True):
        keys, values = (torch.cat([tensor[:, span] for span in access.keys], dim=1) for tensor in (key, value))
        parts.append(with_sinks(query[:, access.queries], keys, values, sinks, window, segment.bidirectional))
    expected = torch.cat(parts, dim=1)
    packed = Heads(query, key, value, 0.3, window, sinks=sinks)
    if attend is attend_varlen and window is not None:
        with pytest.raises(ValueError, match="no variable-length kernel has a sliding window with sinks"):
            attend(packed, layout)
        return
    actual = attend(packed, layout)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(expected)
    inputs = (query, key, value, sinks)
    got, want = (torch.autograd.grad(output, inputs, upstream) for output in (actual, expected))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_scores_that_no_path_supports_are_refused_rather_than_ignored() -> None:
    attend = AttentionInterface()["lion"]  # type: ignore[no-untyped-call]
    layout = RowLayout(segment_table(*DOCUMENTS))
    query, key, value = (tensor[None] for tensor in heads(layout))
    with pytest.raises(NotImplementedError, match="position_bias"):
        attend(torch.nn.Module(), query, key, value, None, layout=layout, position_bias=torch.ones(1))
    with pytest.raises(NotImplementedError, match="soft-capped scores with sinks"):
        attend(torch.nn.Module(), query, key, value, None, layout=layout, softcap=2.0, s_aux=torch.ones(4))


def test_under_mixed_precision_a_kernel_gets_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def watched(heads: Heads, layout: RowLayout) -> Tensor:
        seen.extend(tensor.dtype for tensor in (heads.query, heads.key, heads.value))
        return attend_dense(heads, layout)

    model, batch = policy(), row(*TREE)
    monkeypatch.setattr(attention_module, "attend_sdpa", watched)
    with torch.autocast("cpu", torch.bfloat16):
        packed = model(batch).values
    assert set(seen) == {torch.bfloat16}  # rotary positions would leave queries and keys in fp32, a kernel's refusal
    gradients(model, packed)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "placed",
    [
        ((300, 128, 517), (-1,) * 3),
        ((300, 260, 129, 64), (-1, -1, 1, 1)),
        ((300, 260, 129, 64, 200), (-1, -1, 1, 1, -1), (False, True, False, False, True)),
    ],
)
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("name", ["lion_varlen", "lion_flash"])
def test_gpu_kernels_in_bf16_equal_sdpa_in_fp32(name: str, window: int | None, placed: Any) -> None:
    if name == "lion_flash" and find_spec("flash_attn") is None:
        pytest.skip("needs flash-attn")
    layout = RowLayout(segment_table(*placed), "cuda")
    half = [t.requires_grad_() for t in heads(layout, size=64, device="cuda", dtype=torch.bfloat16)]
    full = [tensor.detach().float().requires_grad_() for tensor in half]
    actual = PATHS[name](Heads(half[0], half[1], half[2], window=window), layout)
    expected = attend_sdpa(Heads(full[0], full[1], full[2], window=window), layout)
    # bf16 keeps 8 bits: a rounded output is off by 2^-9, a sum of 500 rounded probabilities by a few times that
    torch.testing.assert_close(actual.float(), expected, rtol=2e-2, atol=1e-2)
    upstream = torch.randn_like(expected)
    grads = torch.autograd.grad(actual, half, upstream.bfloat16()), torch.autograd.grad(expected, full, upstream)
    for got, want in zip(*grads, strict=True):
        assert (got.float() - want).norm() <= 2e-2 * want.norm()
