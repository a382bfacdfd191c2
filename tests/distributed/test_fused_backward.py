"""Parameters stepped within the backward pass of two FSDP2 ranks: the weights of one process, equal on both ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.optim import SGD, AdamW

from lion_lightning.callbacks import FusedBackward, PeakMemory
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.dtensor import to_full
from lion_lightning.modules import SFTModule
from lion_lightning.optim import AdaLomo
from lion_lightning.strategies import FSDP2Strategy
from tests.distributed.ranks import run_ranks
from tests.tiny import Rows, config, merge, row, tokenizer_folder, trainer

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

# Two rows a step, on each of two ranks or side by side: unequal targets, and none on one rank.
ROWS = [row(seed=seed, supervised=range(25 - 3 * seed, 25) if seed else None) for seed in range(7)]
ROWS.append(ROWS[0].without_targets())
PAIRED = [merge(ROWS[start : start + 2]) for start in range(0, len(ROWS), 2)]

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": partial(SGD, lr=0.1),
    "momentum": partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adamw": partial(AdamW, lr=0.01, weight_decay=0.1),
    "adalomo": partial(AdaLomo, lr=0.05, weight_decay=0.1),
}
CASES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd"},
    "sgd, clipped": {"optimizer": "sgd", "clip": 0.5},
    "momentum, tied, recomputed": {"optimizer": "momentum", "tied": True, "recompute": "full", "clip": 0.5},
    "adamw": {"optimizer": "adamw"},
    "adalomo": {"optimizer": "adalomo"},
    "adalomo, clipped": {"optimizer": "adalomo", "clip": 0.5},
    "lora": {"optimizer": "adamw", "lora": LoRASpec(r=4), "clip": 0.5},
}


def module(folder: Path, optimizer: str, tied: bool = False, **spec: Any) -> SFTModule:
    torch.manual_seed(0)
    made = PolicySpec(config=config(tie_word_embeddings=tied), **spec)
    return SFTModule(made, tokenizer=TokenizerSpec(str(folder)), optimizer=OPTIMIZERS[optimizer])


def fit(
    rank: int, world: int, folder: Path, fused: bool, clip: float | None = None, **how: Any
) -> tuple[dict[str, Any], dict[str, float]]:
    """Whole weights after an epoch, and the metrics of its last step."""
    trained = module(folder, **how)
    options: dict[str, Any] = {"callbacks": [FusedBackward(clip)]} if fused else {"gradient_clip_val": clip}
    strategy = {"strategy": FSDP2Strategy(), "devices": world} if world > 1 else {}
    run = trainer(max_epochs=1, **options, **strategy)
    run.fit(trained, Rows(ROWS, rank, world) if world > 1 else Rows(PAIRED))
    weights = {name: to_full(p).detach() for name, p in trained.policy_model.named_parameters()}
    return weights, {name: value.item() for name, value in run.callback_metrics.items()}


def fit_all(rank: int, world: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {name: fit(rank, world, folder, fused=True, **case) for name, case in CASES.items()}
    resume(rank, world, folder, epochs=1, save="first.ckpt")
    found |= {f"from {start}": resume(rank, world, folder, start) for start in (None, "first.ckpt", "alone.ckpt")}
    return {**found, "peaks": peaks(rank, world, folder)}


def resume(
    rank: int, world: int, folder: Path, start: str | None = None, epochs: int = 2, save: str | None = None
) -> dict[str, Any]:
    """Whole weights after training from a checkpoint, or from the start."""
    trained = module(folder, "adalomo")
    # Ranks write a file, so that one process can go on from it.
    strategy = FSDP2Strategy(save_distributed_checkpoint=False) if world > 1 else "auto"
    run = trainer(max_epochs=epochs, callbacks=[FusedBackward(0.5)], strategy=strategy, devices=world)
    run.fit(trained, Rows(ROWS, rank, world) if world > 1 else Rows(PAIRED), ckpt_path=start and folder / start)
    if save:
        run.save_checkpoint(folder / save)
    return {name: to_full(p).detach() for name, p in trained.policy_model.named_parameters()}


class Allocates(Callback):
    """Takes 64 MiB in the second step of the last rank, and keeps what was logged of each step."""

    def __init__(self) -> None:
        self.logged: list[float] = []

    def on_train_batch_start(self, run: Any, *_: Any) -> None:
        if run.global_step == 1 and run.global_rank == 1:
            torch.ones(64 * 2**18)

    def on_train_batch_end(self, run: Any, *_: Any) -> None:
        self.logged.append(run.callback_metrics["perf/peak_memory"].item())


def peaks(rank: int, world: int, folder: Path) -> list[float]:
    """Peak memory of each step, in GiB."""
    log = Allocates()
    run = trainer(max_epochs=1, callbacks=[PeakMemory(), log], strategy=FSDP2Strategy(), devices=world)
    run.fit(module(folder, "sgd"), Rows(ROWS, rank, world))
    return log.logged


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def sharded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    resume(0, 1, folder, epochs=1, save="alone.ckpt")
    return run_ranks(fit_all, tmp_path_factory.mktemp("ranks"), folder)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_step_as_one_process_after_its_backward(sharded: Any, folder: Path, name: str) -> None:
    weights, metrics = fit(0, 1, folder, fused=False, **CASES[name])
    for rank in sharded:
        found, logged = rank[name]
        assert logged == pytest.approx(metrics, rel=1e-5)
        for key, weight in weights.items():
            torch.testing.assert_close(found[key], weight, rtol=1e-5, atol=2e-6, msg=key)


@pytest.mark.parametrize("name", CASES)
def test_ranks_are_equal_to_the_bit(sharded: Any, name: str) -> None:
    first, second = (rank[name][0] for rank in sharded)
    assert all(torch.equal(weight, second[key]) for key, weight in first.items())


def test_a_resumed_run_ends_equal_to_the_bit(sharded: Any) -> None:
    for rank in sharded:
        whole, resumed = rank["from None"], rank["from first.ckpt"]
        assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_another_number_of_ranks_goes_on_from_a_checkpoint(sharded: Any, folder: Path) -> None:
    whole = resume(0, 1, folder)
    for found in (resume(0, 1, folder, "first.ckpt"), *(rank["from alone.ckpt"] for rank in sharded)):
        for name, weight in whole.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=2e-6, msg=name)


def test_peak_memory_is_the_largest_ranks(sharded: Any) -> None:
    (first, second) = (rank["peaks"] for rank in sharded)
    assert first == second
    assert first[1] - max(first[0], first[2]) > 0.5 * 64 / 1024  # ranks differ without it, too
