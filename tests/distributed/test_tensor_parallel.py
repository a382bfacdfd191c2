"""Tensor parallelism under FSDP2's mesh: losses, metrics and weights of one process, whatever ranks share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD

from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.dtensor import to_full
from lion_lightning.modules import SFTModule
from lion_lightning.strategies import FSDP2Strategy
from tests.distributed.ranks import run_ranks
from tests.tiny import Rows, policy, row, tokenizer_folder, trainer

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

# Eight batches of unequal numbers of targets, the last of none.
ROWS = [
    row(seed=seed, supervised=range(25 - seed**2 // 2, 25) if seed > 1 else None, vocabulary=100) for seed in range(7)
]
ROWS.append(ROWS[0].without_targets())
MODELS: dict[str, dict[str, Any]] = {"llama": {}}
SIZE = {"vocab_size": 104}


def fit(rank: int, world: int, tensor: int, folder: Path, model: str) -> dict[str, Any]:
    torch.manual_seed(rank)
    replicas = world // tensor
    ranks = {"strategy": FSDP2Strategy(tensor_parallel_size=tensor), "devices": world} if world > 1 else {}
    module = SFTModule(
        PolicySpec(str(folder / model)), tokenizer=TokenizerSpec(str(folder)), optimizer=lambda p: SGD(p, lr=0.1)
    )
    run = trainer(max_epochs=1, accumulate_grad_batches=2 // replicas, gradient_clip_val=0.5, **ranks)
    rows = Rows(ROWS, rank // tensor, replicas)
    run.fit(module, rows, rows)
    return {
        "metrics": {name: value.item() for name, value in run.callback_metrics.items()},
        "weights": {name: to_full(p).detach() for name, p in module.policy_model.named_parameters()},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tokenizer_folder(tmp_path_factory.mktemp("models"))
    for name, changes in MODELS.items():
        policy(**{**SIZE, **changes}).causal_lm.save_pretrained(made / name)
    return made


def fit_all(rank: int, world: int, tensor: int, folder: Path) -> dict[str, dict[str, Any]]:
    return {name: fit(rank, world, tensor, folder, name) for name in MODELS}


def assert_same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
    assert actual["weights"].keys() == expected["weights"].keys()
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(actual["weights"][name], weight, rtol=1e-5, atol=1e-6, msg=name)


def test_groups_train_as_one_process(folder: Path, tmp_path: Path) -> None:
    alone = fit_all(0, 1, 1, folder)
    for rank in run_ranks(fit_all, tmp_path, 2, folder):
        for name, result in rank.items():
            assert_same(result, alone[name])
