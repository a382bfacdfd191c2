"""HealthMonitor on two ranks: one of them speaks, and it has seen the losses of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lion_lightning import PolicySpec, SFTModule, TokenizerSpec
from lion_lightning.callbacks import HealthMonitor
from lion_lightning.callbacks.monitors.health import Detector, Finding, Step, read_findings
from lion_lightning.strategies import FSDP2Strategy
from tests import tiny
from tests.distributed.ranks import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

BATCHES = [tiny.row(seed=seed) for seed in range(6)]


class SeesLosses(Detector):
    """Keeps all losses, and finds the second step."""

    symptom = "seen"
    advice = "Nothing is wrong"

    def on_step(self, step: Step) -> Finding | None:
        self.remember("losses", step.metrics["loss"], 100)
        return self.finding(step.number, 1.0, 1.0, "the second step") if step.number == 2 else None


def fit(rank: int, world: int, folder: Path, strategy: str) -> dict[str, list[float]]:
    """Train an epoch, and return what the detector remembers on this rank."""
    torch.manual_seed(0)
    spec = PolicySpec(config=tiny.shallow(tie_word_embeddings=True, eos_token_id=2, pad_token_id=2))
    module = SFTModule(
        spec,
        tokenizer=TokenizerSpec(str(folder / "tokenizer")),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
    )
    sees = SeesLosses()
    options: dict[str, Any] = {"accumulate_grad_batches": 2}
    if world > 1:
        options = {"devices": world, "strategy": FSDP2Strategy() if strategy == "fsdp2" else strategy}
    trainer = tiny.trainer(
        max_epochs=1, callbacks=[HealthMonitor([sees])], default_root_dir=folder / f"run-{world}", **options
    )
    trainer.fit(module, tiny.Rows(BATCHES, rank, world))
    return sees.memory


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_one_rank_speaks_of_the_losses_of_all(strategy: str, tmp_path: Path) -> None:
    tiny.tokenizer_folder(tmp_path / "tokenizer")
    alone = fit(0, 1, tmp_path, "one process")
    first, second = run_ranks(fit, tmp_path, tmp_path, strategy)
    assert len(alone["losses"]) == 3
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert second == {}
    assert [finding.step for finding in read_findings(tmp_path / "run-2" / "health.jsonl")] == [2]
