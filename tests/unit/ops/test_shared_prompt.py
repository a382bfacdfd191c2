"""Rows whose answers share one prompt give the DPO loss and gradients of padded prompt+chosen, prompt+rejected rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from lion_lightning.data.packing.collate import collate
from lion_lightning.losses.pairs.dpo import SigmoidLoss
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec
from lion_lightning.ops.logprobs import pair_logps
from lion_lightning.types import PackedBatch
from tests.marks import exhaustive, slow
from tests.plain_pairs import PAIRS, padded_sides, pair_samples, plain_dpo, plain_logps, plain_logps_one_by_one
from tests.tiny import LEARNED_POSITIONS, SOFTCAPPED, config

SAMPLES = pair_samples()
BATCH = collate(SAMPLES, 64)
SHAPES: dict[str, Any] = {
    "grouped_heads": {},
    "tied_head": {"tie_word_embeddings": True},
    "sliding_window_shorter_than_answers": {"model_type": "mistral", "sliding_window": 4},
    "softcapped_scores_and_logits": SOFTCAPPED,
    "learned_positions": LEARNED_POSITIONS,
}
TOLERANCE = 1e-5


def build(seed: int, attention: str = "lion", shape: dict[str, Any] | None = None, **spec: Any) -> PolicyModel:
    torch.manual_seed(seed)
    model = PolicySpec(config=config(**(shape or {})), attention=attention, **spec).build()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # starts at zero, where an adapter changes nothing
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def frozen(shape: dict[str, Any] | None = None, attention: str = "lion") -> PolicyModel:
    return build(1, attention, shape).requires_grad_(False).eval()


def packed_dpo(policy: PolicyModel, reference: PolicyModel, seen: PackedBatch = BATCH) -> Tensor:
    """Mean DPO loss by the library's parts; ``seen`` is what the policy is given in place of the batch."""
    policy_logps = pair_logps(policy(seen), BATCH)
    losses: Tensor = SigmoidLoss(0.1)(policy_logps, pair_logps(reference(BATCH), BATCH))
    return losses.mean()


def backward(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    torch.autograd.backward(loss)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def errors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Largest error of each gradient, relative to the largest entry of that gradient.

    A gradient that is zero but for rounding (of a bias on keys, which softmax ignores) is measured against the rest.
    """
    assert actual.keys() == expected.keys()
    floor = 1e-3 * max(float(gradient.abs().max()) for gradient in expected.values())
    return {
        name: float((actual[name] - gradient).abs().max()) / max(floor, float(gradient.abs().max()))
        for name, gradient in expected.items()
    }


def plain(policy: PolicyModel, reference: PolicyModel, dtype: torch.dtype) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of copies of the bare models, in the attention that defines them."""
    models = [deepcopy(model).to(dtype) for model in (policy, reference)]
    for model in models:
        model.causal_lm.set_attn_implementation("eager")
    logps = plain_logps_one_by_one if dtype == torch.float64 else plain_logps
    loss = plain_dpo(models[0].model, models[1].model, SAMPLES, logps)
    return loss.item(), backward(models[0], loss)


# fp32 is what is promised; fp64, where a model can do it, shows that it is not two equal roundings that agree
BOTH = (torch.float32, torch.float64)


def assert_equals_plain(policy: PolicyModel, reference: PolicyModel, dtypes: tuple[torch.dtype, ...] = BOTH) -> None:
    loss = packed_dpo(policy, reference)
    gradients = backward(policy, loss)
    for dtype in dtypes:
        expected, expected_gradients = plain(policy, reference, dtype)
        assert loss.item() == pytest.approx(expected, rel=TOLERANCE)
        found = errors(gradients, expected_gradients)
        assert max(found.values()) <= TOLERANCE, max(found.items(), key=lambda item: item[1])


@pytest.mark.parametrize(
    ("attention", "shape"),
    [
        *product(["lion"], SHAPES),
        *product(["lion_dense", "eager"], ["softcapped_scores_and_logits"]),
        ("eager", "learned_positions"),  # where padding would show
        *exhaustive(*product(["lion_dense"], sorted({*SHAPES} - {"softcapped_scores_and_logits"}))),
        *exhaustive(
            *product(["eager"], sorted({*SHAPES} - {"softcapped_scores_and_logits", "learned_positions"})),
            *product(["lion_sdpa"], SHAPES),
        ),
    ],
)
def test_dpo_loss_and_gradients_of_shared_prompts_equal_padded_sequences(attention: str, shape: str) -> None:
    policy = build(0, attention, SHAPES[shape])
    assert policy.packed == (attention != "eager")
    assert_equals_plain(policy, frozen(SHAPES[shape], attention))


@pytest.mark.parametrize("recompute", ["none", "elementwise", "full"])
@pytest.mark.parametrize("lora", [None, LoRASpec(r=4)], ids=["full", "lora"])
@pytest.mark.parametrize("attention", ["lion", *slow("lion_dense", "sdpa")])
def test_adapters_and_recomputation_on_shared_prompts_equal_padded_sequences(
    attention: str, lora: LoRASpec | None, recompute: str
) -> None:
    policy = build(0, attention, lora=lora, recompute=recompute).train()
    assert policy.causal_lm.is_gradient_checkpointing == (recompute != "none")
    assert any("lora_B" in name for name, _ in policy.named_parameters()) == (lora is not None)
    assert_equals_plain(policy, frozen())


def test_a_model_that_cannot_pack_warns_and_equals_padded_sequences(caplog: pytest.LogCaptureFixture) -> None:
    shape = {"model_type": "bloom", "n_layer": 2, "n_head": 4}
    with caplog.at_level(logging.WARNING, "lion_lightning"):
        policy = build(0, "lion", shape)
    assert not policy.packed
    assert "every sequence runs alone in a padded batch" in caplog.text
    assert_equals_plain(policy, frozen(shape))


def test_the_loss_is_not_at_a_point_where_errors_vanish() -> None:
    policy, reference = build(0), frozen()
    with torch.no_grad():
        ratios = plain_logps(policy.model, SAMPLES) - plain_logps(reference.model, SAMPLES)
    margins = ratios[0] - ratios[1]
    assert ((margins.abs() > 0.5) & (margins.abs() < 50)).all()  # times beta: the sigmoid is neither flat nor centred


def answers_see_each_other(batch: PackedBatch) -> PackedBatch:
    parents = [segment.parent + 1 if place % 3 == 2 else segment.parent for place, segment in enumerate(batch.segments)]
    return replace(batch, segments=tuple(s._replace(parent=p) for s, p in zip(batch.segments, parents, strict=True)))


def answers_miss_the_prompt(batch: PackedBatch) -> PackedBatch:
    return replace(batch, segments=tuple(segment._replace(parent=-1) for segment in batch.segments))


def positions_go_on(batch: PackedBatch) -> PackedBatch:
    return replace(batch, position_ids=torch.arange(len(batch.input_ids)))


def token_before_predicts(batch: PackedBatch) -> PackedBatch:
    """A rejected answer's first token predicted from the last of chosen."""
    starts = torch.tensor([batch.segments[int(owner)].start for owner in batch.target_segments])
    return replace(
        batch, logit_positions=torch.where(batch.logit_positions < starts, starts - 1, batch.logit_positions)
    )


@pytest.mark.parametrize(
    "wrong", [answers_see_each_other, answers_miss_the_prompt, positions_go_on, token_before_predicts]
)
def test_a_wrong_row_is_seen_by_the_comparison(wrong: Callable[[PackedBatch], PackedBatch]) -> None:
    policy, reference = build(0), frozen()
    expected, expected_gradients = plain(policy, reference, torch.float32)
    loss = packed_dpo(policy, reference, wrong(BATCH))
    assert abs(loss.item() - expected) > 100 * TOLERANCE * expected
    assert max(errors(backward(policy, loss), expected_gradients).values()) > 100 * TOLERANCE


def test_a_prompt_goes_through_the_model_once() -> None:
    policy = build(0)
    seen: list[int] = []
    policy.causal_lm.get_input_embeddings().register_forward_pre_hook(lambda _, ids: seen.append(ids[0].numel()))
    policy(BATCH)
    plain_logps(policy.model, SAMPLES)
    assert seen == [6 + 5 + 9 + 4 + 1 + 7 + 3 + 8 + 8, 6 * (6 + 9)]


def test_both_answers_start_at_the_prompts_length() -> None:
    starts = [int(BATCH.position_ids[segment.start]) for segment in BATCH.segments]
    assert starts == [0, 6, 6, 0, 4, 4, 0, 3, 3]
    assert BATCH.position_ids[6:20].tolist() == [*range(6, 11), *range(6, 15)]


def test_a_prompts_gradient_is_the_sum_of_both_sides() -> None:
    policy, reference = build(0), frozen()
    made: list[Tensor] = []

    def keep(_: Any, __: Any, output: Tensor) -> None:
        output.retain_grad()
        made.append(output)

    policy.causal_lm.get_input_embeddings().register_forward_hook(keep)
    torch.autograd.backward(packed_dpo(policy, reference))
    torch.autograd.backward(plain_dpo(policy.model, reference.model, SAMPLES))
    row, padded = (output.grad for output in made)
    assert row is not None
    assert padded is not None
    for number, (prompt, _, _) in enumerate(PAIRS):
        start = BATCH.segments[3 * number].start
        sides = padded[number, :prompt], padded[number + len(PAIRS), :prompt]
        assert all(side.abs().max() > 1e-4 for side in sides)
        torch.testing.assert_close(
            row[0, start : start + prompt], sides[0] + sides[1], rtol=0, atol=TOLERANCE * float(row.abs().max())
        )


def test_targets_are_the_supervised_tokens_of_the_padded_rows() -> None:
    ids, _, supervised = padded_sides(SAMPLES)
    by_side = torch.arange(len(PAIRS)) * 3 + torch.tensor([[1], [2]])  # segments of chosen, of rejected
    targets = [BATCH.targets[BATCH.target_segments == segment].tolist() for segment in by_side.flatten()]
    assert targets == [row[mask].tolist() for row, mask in zip(ids, supervised, strict=True)]
    assert [len(found) for found in targets] == [5, 1, 6, 6, 7, 7]


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["lion_varlen", "lion_flash"])
def test_gpu_kernels_give_the_dpo_loss_of_padded_sequences(attention: str) -> None:
    if attention == "lion_flash" and find_spec("flash_attn") is None:
        pytest.skip("needs flash-attn")
    shape = {"head_dim": 64, "hidden_size": 256, "initializer_range": 0.05}
    policy, reference = build(0, shape=shape), frozen(shape)
    expected, expected_gradients = plain(policy, reference, torch.float32)
    policy, reference, batch = policy.cuda().bfloat16(), reference.cuda().bfloat16(), BATCH.to("cuda")
    policy.causal_lm.set_attn_implementation(attention)  # when it was built, its probe ran on the CPU: no kernel there
    assert policy.packed
    losses = SigmoidLoss(0.1)(pair_logps(policy(batch), batch), pair_logps(reference(batch), batch))
    gradients = backward(policy, losses.mean())
    # bf16 keeps 8 bits of every activation: losses of sums of a dozen log-probs to a few percent, gradients likewise
    assert losses.mean().item() == pytest.approx(expected, rel=5e-2)
    for name, gradient in expected_gradients.items():
        assert (gradients[name].float().cpu() - gradient).norm() <= 1e-1 * gradient.norm(), name
