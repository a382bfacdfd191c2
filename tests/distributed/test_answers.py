"""Single answers and groups on two and four ranks, full or sharded: weights, metrics and running means as on one."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD

from lion_lightning.losses import AllPairsLoss, BCOLoss, KTOLoss, PlackettLuceLoss
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.dtensor import full_parameters
from lion_lightning.modules.group import GroupModule
from lion_lightning.modules.kto import KTOModule
from lion_lightning.references.base import AdapterOffReference, FrozenReference
from lion_lightning.references.cached import CachedReference
from lion_lightning.strategies import FSDP2Strategy
from tests.distributed.ranks import run_ranks
from tests.marks import exhaustive
from tests.tiny import Rows, config, tokenizer_folder, trainer, trees

pytestmark = pytest.mark.distributed

NONE = math.nan
# Rows of one to three trees, desirable and undesirable answers in unequal shares; one rank has nothing to do at last.
ANSWERS = [
    trees((5, (4, 7, 3), (1.0, 0.0, NONE)), (3, (6, 5), (1.0, NONE)), seed=1),
    trees((4, (1, 3), (0.0, NONE)), seed=2),
    trees((2, (5, 4), (1.0, NONE)), (6, (3, 2, 5), (0.0, 1.0, NONE)), seed=3),
    trees((3, (3, 4), (1.0, NONE)), seed=4).without_targets(),
]
GROUPS = [
    trees((5, (4, 7, 3), (0.5, 0.0, 1.0)), (3, (6, 5), (0.25, 0.75)), seed=1),
    trees((4, (1, 3, 2), (0.0, 0.0, 1.0)), seed=2),
    trees((2, (5, 4, 6), (1.0, 0.3, 0.6)), (6, (3, 2), (0.5, 0.5)), seed=3),
    trees((3, (3, 4), (0.2, 0.1)), seed=4).without_targets(),
]
STRATEGIES: dict[str, Any] = {"ddp": lambda: "ddp", "fsdp2": FSDP2Strategy}
CASES: dict[str, dict[str, Any]] = {
    "kto, cached": {"kind": KTOModule, "loss": lambda: KTOLoss(0.5, 1.5), "reference": CachedReference},
    "kto, adapters off": {"kind": KTOModule, "loss": lambda: KTOLoss(0.5), "reference": AdapterOffReference},
    "bco, frozen": {"kind": KTOModule, "loss": lambda: BCOLoss(0.5), "reference": FrozenReference},
    "groups, cached": {"kind": GroupModule, "loss": lambda: PlackettLuceLoss(0.5), "reference": CachedReference},
    "all pairs, adapters off": {"kind": GroupModule, "loss": AllPairsLoss, "reference": AdapterOffReference},
}


def fit(rank: int, world: int, folder: Path, strategy: str, case: str) -> dict[str, Any]:
    torch.manual_seed(0)
    how = CASES[case]
    module = how["kind"](
        PolicySpec(config=config(), lora=LoRASpec(r=4) if how["reference"] is AdapterOffReference else None),
        tokenizer=TokenizerSpec(str(folder)),
        loss=how["loss"](),
        reference=how["reference"](),
        optimizer=lambda groups: SGD(groups, lr=0.5),
    )
    batches = ANSWERS if how["kind"] is KTOModule else GROUPS
    ranks = {"strategy": STRATEGIES[strategy](), "devices": world} if world > 1 else {}
    settings = {"max_epochs": 2, "accumulate_grad_batches": 4 // world, "num_sanity_val_steps": 0}
    run = trainer(**settings, **ranks)
    run.fit(module, Rows(batches, rank, world), Rows(batches, rank, world))
    metrics = {name: value.item() for name, value in run.callback_metrics.items()}
    weights = {name: tensor.clone() for name, tensor in full_parameters(module.policy_model)}
    return {"weights": weights, "metrics": metrics, "means": dict(module.loss.named_buffers())}


def fit_all(rank: int, world: int, folder: Path, strategies: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Results by strategy and case."""
    results: dict[str, dict[str, Any]] = {}
    for strategy in strategies:
        os.environ["LION_CACHE"] = str(folder / f"cache of {world} {strategy}")
        results[strategy] = {case: fit(rank, world, folder, strategy, case) for case in CASES}
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    return fit_all(0, 1, folder, ("ddp",))["ddp"]


@pytest.fixture(scope="module", params=[2, *exhaustive(4)], ids=["two ranks", "four ranks"])
def several(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    return run_ranks(fit_all, folder, folder, tuple(STRATEGIES), world=request.param)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_train_as_one(one: dict[str, Any], several: list[dict[str, Any]], strategy: str, case: str) -> None:
    alone = one[case]
    assert {"train/loss", "val/loss"} < alone["metrics"].keys()
    for rank in (results[strategy][case] for results in several):
        assert rank["metrics"].keys() == alone["metrics"].keys()
        for name, value in alone["metrics"].items():
            assert rank["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(rank["weights"][name], weight, rtol=1e-5, atol=1e-6)
        for name, mean in alone["means"].items():
            torch.testing.assert_close(rank["means"][name], mean, rtol=1e-5, atol=1e-6)
