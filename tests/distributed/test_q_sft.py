"""Q-SFT on several ranks: policy and target network are those of one process, also sharded and under LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.optim import SGD

from lion_lightning.data.packing.collate import collate
from lion_lightning.experimental.q_sft import QSFTModule
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.dtensor import full_parameters
from lion_lightning.strategies import FSDP2Strategy
from tests.distributed.ranks import run_ranks
from tests.integration.tree_runs import random_trees
from tests.tiny import Rows, shallow, tokenizer_folder, trainer

pytestmark = pytest.mark.distributed

STRATEGIES: dict[str, Any] = {"ddp": lambda: "ddp", "fsdp2": FSDP2Strategy}
BATCHES = [collate([tree], 64) for tree in random_trees([(0.5, 1.0), (0.0,), (0.3, 0.9, 0.1)] * 3)[:7]]


def fit(rank: int, world: int, folder: Path, strategy: str, lora: bool = False) -> dict[str, Any]:
    """Weights of both models after two epochs; the last of seven batches leaves one of two ranks without rows."""
    torch.manual_seed(0)
    spec = PolicySpec(config=shallow(), lora=LoRASpec(r=4) if lora else None)
    module = QSFTModule(
        spec,
        PolicySpec(config=shallow()),
        alpha=0.3,
        gamma=0.5,
        tokenizer=TokenizerSpec(str(folder)),
        optimizer=lambda groups: SGD(groups, lr=0.1),
    )
    ranks = {"strategy": STRATEGIES[strategy](), "devices": world} if world > 1 else {}
    run = trainer(max_epochs=2, accumulate_grad_batches=4 // world, **ranks)
    batches = [*BATCHES, BATCHES[0].without_targets()]
    run.fit(module, Rows(batches, rank, world))
    target = module.target.model
    assert target is not None
    return {
        name: {weight: tensor.clone() for weight, tensor in full_parameters(model)}
        for name, model in (("policy", module.policy_model), ("target", target))
    }


@pytest.mark.parametrize(("strategy", "lora"), [("ddp", False), ("fsdp2", False), ("fsdp2", True)])
def test_two_ranks_are_one_process(strategy: str, lora: bool, tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path)
    expected = fit(0, 1, folder, "", lora)
    for found in run_ranks(fit, folder, folder, strategy, lora):
        for model, weights in expected.items():
            for name, weight in weights.items():
                torch.testing.assert_close(found[model][name], weight, rtol=1e-4, atol=1e-5)


def refused(rank: int, world: int, folder: Path) -> str:
    module = QSFTModule(
        PolicySpec(config=shallow()), PolicySpec(config=shallow()), tokenizer=TokenizerSpec(str(folder))
    )
    try:
        trainer(max_epochs=1, strategy=FSDP2Strategy(tensor_parallel_size=2), devices=world).fit(module, Rows(BATCHES))
    except MisconfigurationException as error:
        return str(error)
    return ""


def test_tensor_parallelism_is_refused(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path)
    for line in run_ranks(refused, folder, folder):
        assert "QSFTModule compares models over the whole vocabulary" in line
        assert "set tensor_parallel_size: 1 of FSDP2Strategy" in line
