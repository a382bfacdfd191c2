"""StepMean and PrecomputeReference in a module of another project, on two ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import SGD, Optimizer

from lion_lightning import CachedReference, FrozenReference, PolicyModel, PolicySpec
from lion_lightning.callbacks import PrecomputeReference, StepMean
from lion_lightning.losses import SigmoidLoss
from lion_lightning.ops.logprobs import pair_logps
from lion_lightning.types import PackedBatch
from tests import tiny
from tests.distributed.ranks import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

PAIRS = [replace(tiny.pairs((3, 2, 4), (2, 1, 3), seed=seed), capacity=32) for seed in range(3)]
ROWS = [PAIRS[0], replace(PAIRS[1], pairs=PAIRS[1].pairs[:1]), PAIRS[2], PAIRS[0]]  # ranks have other numbers of pairs


class Preferring(LightningModule):
    """DPO by hand, the sum over a row's pairs."""

    def __init__(self, folder: Path, reference: str) -> None:
        super().__init__()
        self.model: PolicyModel = PolicySpec(str(folder / "start")).build()
        cached = CachedReference(cache_dir=folder / "cache")
        self.reference = cached if reference == "cached" else FrozenReference()
        self.loss = SigmoidLoss()

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        policy, reference = (
            pair_logps(logps, batch) for logps in (self.model(batch), self.reference(batch, self.model))
        )
        losses: Tensor = self.loss(policy, reference)
        return losses.sum()

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.model.parameters(), 0.5)


def fit(
    rank: int, world: int, folder: Path, reference: str, epochs: int = 2, resumed: bool = False
) -> dict[str, Tensor]:
    """Train two steps an epoch, of two rows each; the weights at the end."""
    module = Preferring(folder, reference)
    spread: dict[str, Any] = {"devices": world, "strategy": "ddp"} if world > 1 else {"accumulate_grad_batches": 2}
    callbacks = [PrecomputeReference(), StepMean("pairs")]
    trainer = tiny.trainer(max_epochs=epochs, callbacks=callbacks, default_root_dir=folder, **spread)
    trainer.fit(module, tiny.Rows(ROWS, rank, world), ckpt_path=folder / "epoch.ckpt" if resumed else None)
    if epochs == 1:
        trainer.save_checkpoint(folder / "epoch.ckpt")
    return {name: weight.detach().clone() for name, weight in module.model.named_parameters()}


@pytest.mark.parametrize("reference", ["cached", "frozen"])
def test_two_ranks_make_the_steps_of_one_process_and_go_on_from_its_model(reference: str, tmp_path: Path) -> None:
    tiny.policy().causal_lm.save_pretrained(tmp_path / "start")
    alone = fit(0, 1, tmp_path, reference)
    both = run_ranks(fit, tmp_path, tmp_path, reference)
    run_ranks(fit, tmp_path, tmp_path, reference, 1)
    went_on = run_ranks(fit, tmp_path, tmp_path, reference, 2, True)
    for weights in (*both, *went_on):
        torch.testing.assert_close(weights, alone, rtol=1e-4, atol=1e-5)
