"""Recurrent layers, and the balance of experts, sharded by FSDP2 over 2 ranks: losses and weights of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD

from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.dtensor import is_sharded, to_full
from lion_lightning.modules import DPOModule, SFTModule
from lion_lightning.references.base import FrozenReference
from lion_lightning.strategies import FSDP2Strategy
from tests.distributed.ranks import run_ranks
from tests.families import family
from tests.tiny import Rows, merge, pairs, row, tokenizer_folder, trainer

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

PAIRS = [pairs((5, 4, 7), (3, 6, 2), seed=seed) for seed in range(4)]
# three documents, the second with a prefix that is seen whole
DOCUMENTS = [row((7, 5, 9, 4), (-1, -1, 1, -1), seed=seed, bidirectional=(False, True)) for seed in range(2)]
LORA: dict[str, Any] = {"lora": LoRASpec(r=4), "recompute": "elementwise"}
CASES: dict[str, dict[str, Any]] = {
    "weights": {"recompute": "full"},
    "lora": LORA,
    "lora, padded": {**LORA, "attention": "eager"},
}


def run_of(world: int, accumulate: int) -> Any:
    sharded = {"strategy": FSDP2Strategy(), "devices": world} if world > 1 else {}
    return trainer(max_epochs=1, accumulate_grad_batches=accumulate, num_sanity_val_steps=0, **sharded)


def outcome(run: Any, module: Any) -> dict[str, Any]:
    return {
        "metrics": {name: value.item() for name, value in run.callback_metrics.items()},
        "weights": {name: to_full(p).detach() for name, p in module.policy_model.named_parameters()},
        "sharded": is_sharded(module.policy_model),
        "packed": module.policy_model.packed,
        "mixers": len(module.policy_model.mixers.names),
    }


def pair_steps(rank: int, world: int, folder: Path) -> dict[str, dict[str, Any]]:
    outcomes = {}
    for name, case in CASES.items():
        torch.manual_seed(0)
        spec = PolicySpec(path=str(folder / "qwen3_5_text"), **case)
        module = DPOModule(
            spec,
            tokenizer=TokenizerSpec(str(folder)),
            reference=FrozenReference(),
            optimizer=lambda groups: SGD(groups, lr=0.1),
        )
        run = run_of(world, 2 // world)
        run.fit(module, Rows(PAIRS, rank, world), Rows(PAIRS, rank, world))
        outcomes[name] = outcome(run, module)
    return outcomes


def balanced_step(rank: int, world: int, folder: Path) -> dict[str, dict[str, Any]]:
    module = SFTModule(
        PolicySpec(path=str(folder / "mixtral"), recompute="full"),
        tokenizer=TokenizerSpec(str(folder)),
        optimizer=lambda groups: SGD(groups, lr=0.1),
        router_aux_loss_coef=0.5,
    )
    run = run_of(world, 1)
    # One process has the rows of both ranks in one: as many tokens and items each, so that all means are the same.
    run.fit(module, Rows(DOCUMENTS, rank, world) if world > 1 else Rows([merge(DOCUMENTS)]))
    return {"balanced": outcome(run, module)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tokenizer_folder(tmp_path_factory.mktemp("models"))
    for name in ("qwen3_5_text", "mixtral"):
        torch.manual_seed(0)
        PolicySpec(config=family(name)).build().causal_lm.save_pretrained(made / name)
    return made


def assert_same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual["metrics"] == pytest.approx(expected["metrics"], rel=1e-4, abs=1e-5)
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(actual["weights"][name], weight, rtol=1e-5, atol=5e-6, msg=name)


def test_pairs_through_recurrent_layers_train_as_in_one_process(folder: Path, tmp_path: Path) -> None:
    alone = pair_steps(0, 1, folder)
    for rank in run_ranks(pair_steps, tmp_path, folder, world=2):
        for name, result in rank.items():
            packed = "padded" not in name
            assert (result["sharded"], result["packed"], result["mixers"]) == (True, packed, 3 * packed)
        assert_same(rank["weights"], alone["weights"])
        assert_same(rank["lora"], rank["lora, padded"])  # not alone: loading in rows draws more random numbers


def test_loads_of_experts_are_those_of_all_ranks(folder: Path, tmp_path: Path) -> None:
    alone = balanced_step(0, 1, folder)["balanced"]
    for rank in run_ranks(balanced_step, tmp_path, folder, world=2):
        assert rank["balanced"]["sharded"]
        assert_same(rank["balanced"], alone)
