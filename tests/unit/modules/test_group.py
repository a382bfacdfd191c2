"""The group module: what it logs, how a step is normalized, and what it refuses."""

from __future__ import annotations

import math
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

from lion_lightning.losses import AllPairsLoss, LambdaLoss, PlackettLuceLoss, SigmoidLoss, SimPOLoss
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules.dpo import DPOModule
from lion_lightning.modules.group import GroupModule
from lion_lightning.references.base import AdapterOffReference, FrozenReference, NoReference
from lion_lightning.references.cached import CachedReference
from tests.tiny import merge, pairs, trees
from tests.unit.modules.answer_modules import (
    against_another,
    assert_same_steps,
    built,
    fit,
    log_ratios,
    weights,
)

BETA = 0.5
BATCHES = [
    trees((5, (4, 7, 3), (0.5, 0.0, 1.0)), (3, (6, 5), (0.25, 0.75)), seed=1),
    trees((4, (1, 3, 2), (0.0, 0.0, 1.0)), seed=2),
    trees((2, (5, 4, 6), (1.0, 0.3, 0.6)), (6, (3, 2), (0.5, 0.5)), seed=3),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LION_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("stage", ["train", "val"])
def test_loss_and_metrics_of_all_groups_together(tokenizer: TokenizerSpec, stage: str) -> None:
    made = against_another(GroupModule, tokenizer, lr=0.0, loss=AllPairsLoss(SigmoidLoss(BETA)))
    metrics = fit(made, BATCHES, accumulate_grad_batches=3)
    losses, taus, orders, margins, kl = [], [], [], [], 0.0
    for batch in BATCHES:
        ratios, start = log_ratios(made, batch)[1].tolist(), 0
        kl += sum(ratios)
        for prompt in sorted({batch.segments[segment].parent for segment in batch.answers}):
            size = sum(segment.parent == prompt for segment in batch.segments)
            own = list(zip(ratios[start : start + size], batch.values[start : start + size], strict=True))
            start += size
            found = []
            for (one, value), (other, less) in permutations(own, 2):
                found += [BETA * (one - other)] if value > less else []
            losses.append(sum(math.log1p(math.exp(-margin)) for margin in found) / max(1, len(found)))
            margins += found
            orders += [margin > 0 for margin in found]
            if found:
                taus.append(sum(1 if margin > 0 else -1 for margin in found) / len(found))
    assert (len(losses), len(taus), len(orders)) == (5, 4, 3 + 1 + 2 + 3)
    assert 0 < sum(orders) < len(orders)  # or the ranks would say nothing
    expected = {
        "loss": sum(losses) / 5,
        "group_size": (3 + 2 + 3 + 3 + 2) / 5,
        "rewards/accuracy": sum(orders) / 9,
        "rewards/margin": sum(margins) / 9,
        "rewards/kendall": sum(taus) / 4,
        "log_ratio": kl / 13,
        "lengths": (14 + 11 + 6 + 15 + 5) / 13,
        "values": (1.5 + 1.0 + 1.0 + 1.9 + 1.0) / 13,
    }
    for name, value in expected.items():
        assert metrics[f"{stage}/{name}"] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("loss", [PlackettLuceLoss, LambdaLoss, AllPairsLoss])
def test_the_gradient_does_not_depend_on_how_groups_are_split(tokenizer: TokenizerSpec, loss: Any) -> None:
    found = []
    for batches in (BATCHES, [merge(BATCHES)], [merge(BATCHES[:2]), BATCHES[2]]):
        made = against_another(GroupModule, tokenizer, loss=loss())
        fit(made, batches, accumulate_grad_batches=len(batches))
        found.append(weights(made))
    assert_same_steps(found, weights(built(GroupModule, tokenizer, reference=FrozenReference())))


@pytest.mark.parametrize("loss", [PlackettLuceLoss(BETA), AllPairsLoss(SigmoidLoss(BETA))])
def test_groups_of_two_train_as_pairs_do(tokenizer: TokenizerSpec, loss: Any) -> None:
    two = trees((5, (4, 7), (1.0, 0.0)), (3, (6, 2), (1.0, 0.0)), seed=1)
    same = pairs((5, 4, 7), (3, 6, 2), seed=1)
    assert torch.equal(two.input_ids, same.input_ids)
    group = against_another(GroupModule, tokenizer, loss=loss)
    dpo = against_another(DPOModule, tokenizer, loss=SigmoidLoss(BETA))
    fit(group, [two], max_epochs=2)
    fit(dpo, [same], max_epochs=2)
    assert_same_steps(
        [weights(group), weights(dpo)], weights(built(GroupModule, tokenizer, reference=FrozenReference()))
    )


def test_references_give_the_same_steps_with_and_without_adapters(tokenizer: TokenizerSpec) -> None:
    for lora, kinds in ((False, (FrozenReference, CachedReference)), (True, (AdapterOffReference, CachedReference))):
        found = []
        for kind in kinds:
            made = built(GroupModule, tokenizer, lora=lora, reference=kind())
            start = weights(made)
            fit(made, BATCHES, max_epochs=2)
            found.append(weights(made))
        assert any(not torch.equal(value, start[name]) for name, value in found[0].items())
        assert_same_steps(found, start)


def test_a_policy_learns_the_order(tokenizer: TokenizerSpec) -> None:
    metrics = fit(built(GroupModule, tokenizer, loss=PlackettLuceLoss(0.5)), BATCHES, max_epochs=4)
    assert metrics["val/rewards/accuracy"] == metrics["val/rewards/kendall"] == 1.0
    assert metrics["val/rewards/margin"] > 0


def test_values_are_exact_in_a_model_of_bf16(tokenizer: TokenizerSpec) -> None:
    made = built(GroupModule, tokenizer, lr=0.0, reference=FrozenReference())
    metrics = fit(made, BATCHES, precision="bf16-true")
    assert metrics["val/values"] == pytest.approx((1.5 + 1.0 + 1.0 + 1.9 + 1.0) / 13, rel=1e-6)  # 0.3 is 0.3008 there
    assert metrics["val/rewards/kendall"] == 0.0
    # equal policies: ln 3! for three different values, ln 2 for two, and ln 2 + ln 2 and 0 where there are ties
    expected = (2 * math.log(6) + math.log(2) + math.log(3)) / 5
    assert metrics["val/loss"] == pytest.approx(expected, rel=1e-3)


def test_a_loss_without_a_reference_gets_none(tokenizer: TokenizerSpec) -> None:
    made = built(GroupModule, tokenizer, loss=AllPairsLoss(SimPOLoss()), lr=0.0)
    assert isinstance(made.reference, NoReference)
    assert "val/log_ratio" not in fit(made, BATCHES)


def test_a_rank_without_rows_keeps_step(tokenizer: TokenizerSpec) -> None:
    made = built(GroupModule, tokenizer, reference=FrozenReference())
    output = made.compute_loss(BATCHES[0].without_targets())
    assert (output.num_items.item(), output.total.item()) == (0, 0.0)
    assert made.compute_loss(BATCHES[0]).metrics.keys() == output.metrics.keys()
    torch.autograd.backward(output.total)


@pytest.mark.parametrize(
    "batch",
    [trees((4, (3,), (1.0,)), (5, (2, 2), (1.0, 0.0))), trees((4, (3, 2), (1.0, math.nan)))],
    ids=["a single answer", "no value"],
)
def test_what_is_no_group_is_refused(tokenizer: TokenizerSpec, batch: Any) -> None:
    said = r"^GroupModule compares .* single answer or answers without a value; use GroupDataModule, or KTOModule"
    with pytest.raises(ValueError, match=said):
        fit(built(GroupModule, tokenizer), [batch])
