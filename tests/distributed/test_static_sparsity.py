"""Sparse training over two ranks, sharded or replicated, is that of one process, and a sharded run resumes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from lion_lightning import PolicySpec, SFTModule, TokenizerSpec
from lion_lightning.experimental.static_sparsity import StaticSparsity
from lion_lightning.models.weights.dtensor import to_full
from lion_lightning.strategies import FSDP2Strategy
from tests.distributed.ranks import run_ranks
from tests.tiny import Rows, row, shallow, tokenizer_folder, trainer

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

ROWS = [row(seed=seed) for seed in range(4)]
UNEVEN = shallow(intermediate_size=45)  # 45 rows: 23 and 22
EVEN = shallow(vocab_size=102)  # ranks that share layers want equal parts


def fit(
    rank: int,
    world: int,
    folder: Path,
    strategy: str,
    epochs: int,
    shape: dict[str, Any] = UNEVEN,
    ckpt_path: Path | None = None,
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    spec = PolicySpec(config=shape)
    module = SFTModule(spec, tokenizer=TokenizerSpec(str(folder)), optimizer=partial(SGD, lr=0.1, momentum=0.9))
    tensor = FSDP2Strategy(tensor_parallel_size=world)
    strategies: dict[str, Any] = {"fsdp2": FSDP2Strategy(), "tensor": tensor, "ddp": "ddp", "alone": "auto"}
    replicas = 1 if strategy == "tensor" else world
    run = trainer(
        max_epochs=epochs,
        devices=world,
        accumulate_grad_batches=2 // replicas,
        gradient_clip_val=0.5,
        callbacks=[StaticSparsity(0.75)],
        strategy=strategies[strategy],
    )
    run.fit(module, Rows(ROWS, rank % replicas, replicas), ckpt_path=ckpt_path)
    run.save_checkpoint(folder / f"{strategy} {epochs}.ckpt")
    return {name: to_full(p).detach().clone() for name, p in module.policy_model.named_parameters()}


def fit_all(rank: int, world: int, folder: Path) -> list[dict[str, Tensor]]:
    return [
        fit(rank, world, folder, "fsdp2", 1),
        fit(rank, world, folder, "fsdp2", 2, ckpt_path=folder / "fsdp2 1.ckpt"),
        fit(rank, world, folder, "ddp", 2),
        fit(rank, world, folder, "tensor", 2, EVEN),
    ]


def test_two_ranks_train_as_one_process_and_a_sharded_run_resumes(tmp_path: Path) -> None:
    tokenizer_folder(tmp_path)
    half, whole = (fit(0, 1, tmp_path, "alone", epochs) for epochs in (1, 2))
    alone = (half, whole, whole, fit(0, 1, tmp_path, "alone", 2, EVEN))
    for found in run_ranks(fit_all, tmp_path, tmp_path):
        for weights, expected in zip(found, alone, strict=True):
            for name, weight in expected.items():
                torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-6, msg=name)
                assert torch.equal(weights[name] == 0, weight == 0), name
    zeros = whole["model.model.layers.0.mlp.down_proj.weight"] == 0
    assert int(zeros.sum()) == 32 * 45 - 360  # int(0.25 * 1440) stay
