"""The KTO module: what it trains on, what it logs, and what mismatched answers do."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lion_lightning.losses import AnswerLoss, APOZeroUnpairedLoss, BCOLoss, KTOLoss, UnlikelihoodLoss
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules.kto import KTOModule
from lion_lightning.references.base import AdapterOffReference, FrozenReference, NoReference
from lion_lightning.references.cached import CachedReference
from lion_lightning.types import PackedBatch, keep_answers
from tests.tiny import Rows, merge, trainer, trees
from tests.unit.modules.answer_modules import (
    against_another,
    assert_same_steps,
    built,
    fit,
    log_ratios,
    weights,
)

NONE = math.nan
BETA = 0.5
BATCHES = [
    trees((5, (4, 7, 3), (1.0, 0.0, NONE)), (3, (6, 5), (1.0, NONE)), seed=1),
    trees((4, (1, 3), (0.0, NONE)), seed=2),
    trees((2, (5, 4), (1.0, NONE)), (6, (3, 2, 5), (0.0, 1.0, NONE)), seed=3),
]
PLAIN = [trees((5, (4, 7), (1.0, 0.0)), (3, (6,), (1.0,)), seed=1), trees((4, (1,), (0.0,)), seed=2)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LION_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("stage", ["train", "val"])
def test_loss_and_metrics_are_means_over_their_own_kinds(tokenizer: TokenizerSpec, stage: str) -> None:
    made = against_another(KTOModule, tokenizer, lr=0.0, loss=KTOLoss(BETA, 1.5, 0.5))
    metrics = fit(made, BATCHES, accumulate_grad_batches=3)
    losses: list[float] = []
    kinds: dict[str, list[list[float]]] = {"chosen": [], "rejected": [], "mismatched": []}
    for batch in BATCHES:
        logps, ratios = (each.tolist() for each in log_ratios(made, batch))
        lengths = [batch.segments[segment].length for segment in batch.answers]
        apart = [ratio for ratio, value in zip(ratios, batch.values, strict=True) if math.isnan(value)]
        anchor = max(0.0, sum(apart) / len(apart))
        for logp, ratio, length, value in zip(logps, ratios, lengths, batch.values, strict=True):
            kind = "mismatched" if math.isnan(value) else "chosen" if value else "rejected"
            kinds[kind].append([BETA * ratio, logp, length, ratio])
            if kind != "mismatched":
                sign, weight = (1, 1.5) if value else (-1, 0.5)
                losses.append(weight / (1 + math.exp(sign * BETA * (ratio - anchor))))
    assert [len(rows) for rows in kinds.values()] == [4, 3, 5]
    means = {kind: torch.tensor(rows).mean(0).tolist() for kind, rows in kinds.items()}
    expected = {
        "loss": sum(losses) / 7,
        "desirable": 4 / 7,
        "rewards/margin": means["chosen"][0] - means["rejected"][0],
        "log_ratio": (4 * means["chosen"][3] + 3 * means["rejected"][3]) / 7,
        "log_ratio/mismatched": means["mismatched"][3],
    }
    for kind in ("chosen", "rejected"):
        for place, name in enumerate(("rewards", "logps", "lengths")):
            expected[f"{name}/{kind}"] = means[kind][place]
    for name, value in expected.items():
        assert metrics[f"{stage}/{name}"] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_a_kind_that_a_step_has_none_of_is_not_a_number(tokenizer: TokenizerSpec) -> None:
    metrics = fit(built(KTOModule, tokenizer, lr=0.0), [BATCHES[1]])
    for stage in ("train", "val"):
        for name in ("rewards/chosen", "rewards/margin", "logps/chosen", "lengths/chosen"):
            assert math.isnan(metrics[f"{stage}/{name}"]), name
        assert metrics[f"{stage}/lengths/rejected"] == 1.0
        assert metrics[f"{stage}/loss"] == pytest.approx(0.5)


def test_the_gradient_is_that_of_the_labeled_answers_alone(tokenizer: TokenizerSpec) -> None:
    one, other = (against_another(KTOModule, tokenizer, loss=KTOLoss(BETA)) for _ in range(2))
    batch = BATCHES[0]
    torch.autograd.backward(one.compute_loss(batch).total)
    positions = [place for place, value in enumerate(batch.values) if not math.isnan(value)]
    _, ratios = log_ratios(one, batch)
    anchor = ratios[[2, 4]].mean().relu()
    own = other.policy_model(batch).values
    sums = own.new_zeros(len(batch.segments)).index_add(0, batch.target_segments, own)[batch.answers]
    base = (log_ratios(other, batch)[0] - ratios)[positions]
    rewards = BETA * (sums[positions] - base - anchor)
    signs = torch.tensor([1.0, -1.0, 1.0])  # values 1, 0, 1
    torch.autograd.backward((-signs * rewards).sigmoid().sum())
    for got, want in zip(one.policy_model.parameters(), other.policy_model.parameters(), strict=True):
        assert got.grad is not None
        assert want.grad is not None
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [APOZeroUnpairedLoss, BCOLoss, UnlikelihoodLoss])
def test_the_gradient_does_not_depend_on_how_answers_are_split(tokenizer: TokenizerSpec, loss: Any) -> None:
    found = []
    for batches in (BATCHES, [merge(BATCHES)], [merge(BATCHES[:2]), BATCHES[2]]):
        made = against_another(KTOModule, tokenizer, loss=loss(), lr=0.05)
        fit(made, batches, accumulate_grad_batches=len(batches))
        found.append(weights(made))
    assert_same_steps(found, weights(built(KTOModule, tokenizer, loss=loss(), reference=FrozenReference())))


def test_references_give_the_same_steps(tokenizer: TokenizerSpec) -> None:
    found = []
    for kind in (FrozenReference, CachedReference):
        made = built(KTOModule, tokenizer, reference=kind())
        fit(made, BATCHES, max_epochs=2)
        found.append(weights(made))
    assert_same_steps(found, weights(built(KTOModule, tokenizer, reference=FrozenReference())))


def test_adapters_train_against_the_base_model(tokenizer: TokenizerSpec) -> None:
    found = []
    for kind in (AdapterOffReference, CachedReference):
        made = built(KTOModule, tokenizer, lora=True, reference=kind())
        before = weights(made)
        metrics = fit(made, BATCHES, max_epochs=2)
        found.append(weights(made))
        assert metrics["val/rewards/margin"] > 0
    assert any(not torch.equal(value, before[name]) for name, value in found[0].items())
    assert_same_steps(found, before)


def test_mismatched_answers_are_left_out_where_the_loss_has_no_use_for_them(tokenizer: TokenizerSpec) -> None:
    found = []
    for batches in (BATCHES[:2], [labeled_alone(batch) for batch in BATCHES[:2]]):
        made = built(KTOModule, tokenizer, loss=UnlikelihoodLoss(), lr=0.01)
        metrics = fit(made, batches)
        assert isinstance(made.reference, NoReference)
        assert not {name for name in metrics if "log_ratio" in name}
        found.append(weights(made))
    assert_same_steps(found, weights(built(KTOModule, tokenizer)))


def labeled_alone(batch: PackedBatch) -> PackedBatch:
    return keep_answers(batch, [place for place, value in enumerate(batch.values) if not math.isnan(value)])


class Watching(UnlikelihoodLoss):
    """Says how many mismatched answers it was shown before each forward."""

    needs_mismatched = True

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[int] = []

    def observe_mismatched(self, policy: Any, reference: Any) -> None:
        assert not policy.sums.requires_grad
        self.shown.append(len(policy.sums))


def test_a_rank_without_rows_keeps_step(tokenizer: TokenizerSpec) -> None:
    loss = Watching()
    made = built(KTOModule, tokenizer, loss=loss)
    forwards: list[bool] = []
    made.policy_model.register_forward_hook(lambda *_: forwards.append(torch.is_grad_enabled()))
    output = made.compute_loss(BATCHES[0].without_targets())
    assert (output.num_items.item(), output.total.item()) == (0, 0.0)
    assert made.compute_loss(BATCHES[0]).metrics.keys() == output.metrics.keys()
    torch.autograd.backward(output.total)
    assert forwards == [False, True] * 2
    assert loss.shown == [0, 2]


def test_data_without_mismatched_answers_is_refused_where_the_loss_needs_them(
    tokenizer: TokenizerSpec, caplog: pytest.LogCaptureFixture
) -> None:
    class Data:
        mismatched = False

    made = built(KTOModule, tokenizer, reference=FrozenReference())
    made.trainer = trainer()
    with pytest.raises(ValueError, match=r"^model.loss: KTOLoss estimates .* data.mismatched is false; set it to true"):
        made.require_data(Data())
    for loss in (BCOLoss(), APOZeroUnpairedLoss()):
        made.loss = loss
        made.require_data(Data())
    assert "mismatched" not in caplog.text
    Data.mismatched = True
    with caplog.at_level(logging.WARNING, "lion_lightning"):
        made.require_data(Data())
    assert "APOZeroUnpairedLoss has no use for mismatched answers" in caplog.text


def test_batches_without_mismatched_answers_are_refused_where_the_loss_needs_them(tokenizer: TokenizerSpec) -> None:
    with pytest.raises(ValueError, match=r"^KTOLoss estimates .* \(of value NaN\), and the batch has none; use Unp"):
        fit(built(KTOModule, tokenizer), PLAIN)
    assert "val/loss" in fit(built(KTOModule, tokenizer, loss=BCOLoss()), PLAIN)


def test_labels_other_than_0_and_1_and_none_at_all_are_refused(tokenizer: TokenizerSpec) -> None:
    scored = trees((4, (3, 2), (0.7, 0.1)))
    with pytest.raises(ValueError, match=r"^KTOModule trains on labeled answers, and the batch holds groups of scored"):
        fit(built(KTOModule, tokenizer), [scored])
    unknown = replace(scored, values=(NONE, NONE))
    with pytest.raises(ValueError, match=r"^KTOModule: no answer of the batch has a label; use UnpairedDataModule$"):
        fit(built(KTOModule, tokenizer), [unknown])


def test_bco_s_means_are_in_the_checkpoint(tokenizer: TokenizerSpec, tmp_path: Path) -> None:
    made = built(KTOModule, tokenizer, loss=BCOLoss())
    run = trainer(max_epochs=2)
    run.fit(made, Rows(PLAIN))
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = KTOModule.load_from_checkpoint(tmp_path / "a.ckpt", loss=BCOLoss())
    assert isinstance(loaded.loss, AnswerLoss)
    kept = dict(loaded.loss.named_buffers())
    assert kept["desirable.totals"][1] == 4.0
    assert all(torch.equal(value, kept[name]) for name, value in made.loss.named_buffers())
