"""Policy gradients on two and four ranks, full or sharded: every step and the weights at the end as in one process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.optim import SGD

from lion_lightning import AdapterOffReference, CachedReference
from lion_lightning.losses import DAPOLoss, GRPOLoss
from lion_lightning.losses.policy_gradients.kl import KLInReward
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.weights.dtensor import full_parameters
from lion_lightning.strategies import FSDP2Strategy
from lion_lightning.types import PackedBatch
from tests.distributed.ranks import run_ranks
from tests.integration.online import PolicyGradientOnline, Watch
from tests.marks import exhaustive

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

STRATEGIES: dict[str, Any] = {"ddp": DDPStrategy, "fsdp2": FSDP2Strategy}
# The third and the fourth step of a round are clipped here and there: tests below see to that.
LOSSES: dict[str, Any] = {
    "grpo": partial(GRPOLoss, beta=0.1, clip_low=0.05),
    "dapo": partial(DAPOLoss, clip_low=0.05, clip_high=0.1),
    "kl in reward": partial(GRPOLoss, beta=0.1, kl=KLInReward(), clip_low=0.05),
}


class Case(NamedTuple):
    strategy: str
    loss: str
    lora: bool = False


class Steps(Watch):
    """Keeps what each optimizer step logs, the sizes of groups, and how many rows are empty."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[int, dict[str, float]] = {}
        self.sizes: set[int] = set()
        self.empty = 0

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, module, batch, batch_idx)
        assert isinstance(batch, PackedBatch)
        parents = [segment.parent for segment in batch.segments if segment.parent >= 0]
        self.sizes.update(map(parents.count, parents))
        self.empty += not len(batch.targets)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        if trainer.global_step:
            self.logged[trainer.global_step] = metrics


def opened(folder: Path) -> PolicyGradientOnline:
    online = PolicyGradientOnline.__new__(PolicyGradientOnline)  # the folder is there already
    online.folder, online.start, online.every = folder, folder / "start", 100
    return online


def train(rank: int, world: int, folder: Path, case: Case) -> dict[str, Any]:
    """Two rounds of several steps, each of four rows, on all ranks where there are any."""
    online, place = opened(folder), f"{case} {world}"
    os.environ["LION_CACHE"] = str(folder / "cache" / place)
    torch.manual_seed(0)
    module = online.module(
        optimizer=partial(SGD, lr=0.1, momentum=0.9),
        loss=LOSSES[case.loss](),
        policy=PolicySpec(str(online.start), lora=LoRASpec(r=4) if case.lora else None),
        reference=(AdapterOffReference if case.lora else CachedReference)() if case.loss != "dapo" else None,
    )
    ranks: dict[str, Any] = {"strategy": STRATEGIES[case.strategy](), "devices": world} if world > 1 else {}
    options: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": 4 // world, "gradient_clip_val": 1.0}
    watch = Steps()
    run = online.trainer(place, [online.sampling(), watch], log_every_n_steps=1, **options, **ranks)
    run.fit(module, datamodule=online.data(row_length=36, batch_size=1))
    weights = {name: parameter.clone() for name, parameter in full_parameters(module.policy_model)}
    return {"logged": list(watch.logged.values()), "weights": weights, "sizes": watch.sizes, "empty": watch.empty}


def train_all(rank: int, world: int, folder: Path, cases: Sequence[Case]) -> list[dict[str, Any]]:
    return [train(rank, world, folder, case) for case in cases]


FEW = [Case("ddp", "dapo"), Case("fsdp2", "grpo"), Case("ddp", "grpo", lora=True)]
MORE = [Case("fsdp2", "dapo"), Case("ddp", "kl in reward"), Case("fsdp2", "kl in reward", lora=True)]


@pytest.mark.parametrize(("world", "cases"), [(2, FEW), *exhaustive((2, MORE), (4, FEW), (4, MORE))])
def test_every_step_on_several_ranks_is_that_of_one_process(tmp_path: Path, world: int, cases: list[Case]) -> None:
    PolicyGradientOnline(tmp_path)
    ranks = run_ranks(train_all, tmp_path, tmp_path, cases, world=world)
    for number, case in enumerate(cases):
        alone = train(0, 1, tmp_path, case)
        logged = alone["logged"]
        assert {step["train/staleness"] for step in logged} >= {0.0, 1.0, 2.0}
        assert any(step["train/clip/low"] + step["train/clip/high"] > 0 for step in logged)
        assert {3, 4} <= alone["sizes"]
        assert sum(rank[number]["empty"] for rank in ranks) > 0  # some rank has no rows in the last step of a round
        for rank in (results[number] for results in ranks):
            for ours, theirs in zip(rank["logged"], logged, strict=True):
                assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
            for name, weight in alone["weights"].items():
                torch.testing.assert_close(rank["weights"][name], weight, rtol=1e-5, atol=1e-6)
