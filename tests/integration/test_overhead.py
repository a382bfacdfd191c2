"""The measure of the modules' overhead: both sides do the same, and what is made of their measurements."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lion_lightning import CachedReference, DPOModule, PolicySpec, SFTModule, TokenizerSpec
from lion_lightning.losses import SigmoidLoss
from tests import tiny
from tests.benchmarks import ROOT, benchmark

SHAPE = tiny.config(tie_word_embeddings=True, eos_token_id=2, pad_token_id=2)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return benchmark


def turns(*seconds: float, loss: float = 1.0) -> list[dict[str, Any]]:
    return [{"seconds": each, "cpu_seconds": 2 * each, "losses": [loss]} for each in seconds]


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_hand_written_loop_trains_what_the_module_trains(scripts: Any, tmp_path: Path, stage: str) -> None:
    sides = scripts("overhead_workers")
    lengths = (4, 3, 5), (2, 6, 2)
    batches = [tiny.pairs(*lengths, seed=seed) if stage == "dpo" else tiny.row(seed=seed) for seed in range(3)]
    torch.manual_seed(0)
    policy = PolicySpec(config=SHAPE).build().train()
    loss = sides.sft_loss(policy) if stage == "sft" else sides.dpo_loss(policy, batches)
    optimizer = partial(torch.optim.AdamW, lr=sides.LEARNING_RATE, weight_decay=0.0, fused=True)
    settings: dict[str, Any] = {
        "policy": PolicySpec(config=SHAPE),
        "tokenizer": TokenizerSpec(str(tiny.tokenizer_folder(tmp_path / "tokenizer"))),
        "optimizer": optimizer,
    }
    reference = CachedReference(cache_dir=tmp_path / "cache")
    torch.manual_seed(0)
    module = (
        SFTModule(**settings)
        if stage == "sft"
        else DPOModule(**settings, loss=SigmoidLoss(sides.BETA), reference=reference)
    )
    trainer = tiny.trainer(max_epochs=1)
    losses = list(sides.train(policy, loss, batches))
    torch.manual_seed(0)
    trainer.fit(module, tiny.Rows(batches))
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(losses[-1], abs=1e-6)
    for (name, own), other in zip(policy.named_parameters(), module.policy_model.parameters(), strict=True):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-5, msg=name)


def test_a_ratio_is_of_steps_side_by_side_without_the_first(scripts: Any) -> None:
    found = scripts("overhead").measurement("SFT", {"ours": turns(9, 2.02, 1.04), "plain": turns(1, 2, 1)})
    assert found.ratios == pytest.approx([1.01, 1.04])
    assert found.met


def test_sides_that_do_not_do_the_same_are_not_compared(scripts: Any) -> None:
    with pytest.raises(SystemExit, match=r"0\.5 apart"):
        scripts("overhead").measurement("SFT", {"ours": turns(1, 1), "plain": turns(1, 1, loss=1.5)})


@pytest.mark.exhaustive
def test_the_measure_runs(scripts: Any) -> None:
    overhead = scripts("overhead")
    shape = overhead.SHAPE | {"hidden_size": 36, "intermediate_size": 48, "num_hidden_layers": 1}
    assert [len(found.ratios) for found in overhead.measure(1, threads=1, shape=shape)] == [1, 1]
