"""Sharding on GPUs, Lightning's FSDPStrategy included, which takes nothing else: as one process without a strategy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch.optim import SGD
from transformers import AutoModelForCausalLM

from lion_lightning.models.checkpoints.export import export_checkpoint
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.dtensor import full_parameters
from lion_lightning.modules import SFTModule
from lion_lightning.strategies import FSDP2Strategy, WrapLayers
from tests.distributed.ranks import run_ranks
from tests.tiny import Rows, policy, row, tokenizer_folder, trainer

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

ROWS = [row(seed=seed) for seed in range(8)]
UNIT = 2.0**-8
"""The most that a rounding to bf16 is off, relative to the value."""
TOLERANCE = {"32-true": 1e-3, "bf16-mixed": 2 * 32**0.5 * UNIT}
"""How far weights may be from those of one process, relative to how far training has moved them.

Updates are off by rounding: fp32 keeps 24 bits, and kernels add in other orders; of bf16's, 32 follow one another.
"""


def fsdp(**options: Any) -> FSDPStrategy:
    return FSDPStrategy(auto_wrap_policy=WrapLayers(), **options)


Making = Callable[[], Any]
CASES: dict[str, tuple[Making, str]] = {
    "fsdp": (fsdp, "32-true"),
    "fsdp bf16": (fsdp, "bf16-mixed"),
    "fsdp activations": (partial(fsdp, activation_checkpointing_policy=WrapLayers()), "32-true"),
    "fsdp full": (partial(fsdp, state_dict_type="full"), "32-true"),
    "fsdp sharded": (partial(fsdp, state_dict_type="sharded"), "32-true"),
    "fsdp2": (FSDP2Strategy, "32-true"),
    "fsdp2 bf16": (FSDP2Strategy, "bf16-mixed"),
    "fsdp2 offloaded": (partial(FSDP2Strategy, cpu_offload=True), "32-true"),
}


def fit(
    rank: int, world: int, folder: Path, strategy: Making | None, precision: str, accelerator: str, saved: str = ""
) -> dict[str, torch.Tensor]:
    """Weights after two steps of four rows each, clipped; a checkpoint of them where it has a name."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    optimizer = partial(SGD, lr=0.1, momentum=0.9)
    module = SFTModule(PolicySpec(str(folder / "start")), tokenizer=TokenizerSpec(str(folder)), optimizer=optimizer)
    sharded = {"strategy": strategy()} if strategy is not None else {}
    settings = {"accelerator": accelerator, "devices": world, "precision": precision, "gradient_clip_val": 0.5}
    run = trainer(max_steps=2, accumulate_grad_batches=4 // world, **settings, **sharded)
    run.fit(module, Rows(ROWS, rank, world))
    if saved:
        run.save_checkpoint(folder / saved)
    return {name: parameter.detach().cpu().clone() for name, parameter in full_parameters(module.policy_model)}


def fit_all(rank: int, world: int, folder: Path, accelerator: str, names: list[str]) -> dict[str, Any]:
    return {name: fit(rank, world, folder, *CASES[name], accelerator, f"{name}.ckpt") for name in names}


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weights[name].float().flatten() for name in sorted(weights)])


def check(folder: Path, world: int, accelerator: str, names: list[str]) -> None:
    """Compare all cases with one process of the same precision, and what they saved with what they trained."""
    tokenizer_folder(folder)
    start = policy()  # read by all: random weights would be drawn on the GPU by some strategies and not by others
    start.causal_lm.save_pretrained(folder / "start")
    before = flat({name: parameter.detach() for name, parameter in start.named_parameters()})
    kinds = {precision for _, precision in CASES.values()}
    alone = {kind: flat(fit(0, 1, folder, None, kind, accelerator)) for kind in kinds}
    for rank in run_ranks(fit_all, folder, folder, accelerator, names, world=world):
        for name in names:
            precision = CASES[name][1]
            moved = (alone[precision] - before).norm()
            assert 0 < moved < before.norm() / 10
            assert (flat(rank[name]) - alone[precision]).norm() <= TOLERANCE[precision] * moved, name
            model: Any = AutoModelForCausalLM.from_pretrained(exported(folder, name))
            state = model.state_dict()
            assert all(torch.equal(state[key.removeprefix("model.")], value) for key, value in rank[name].items()), name


def exported(folder: Path, name: str) -> Path:
    out = folder / f"{name} exported"
    return out if out.exists() else export_checkpoint(folder / f"{name}.ckpt", out)


@pytest.mark.parametrize("world", [1, 2])
def test_gpus_train_as_one_process_and_what_they_save_is_exported(world: int, tmp_path: Path) -> None:
    if torch.cuda.device_count() < world:
        pytest.skip(f"needs {world} GPUs")
    check(tmp_path, world, "gpu", list(CASES))
    forms = {name: (tmp_path / f"{name}.ckpt").is_dir() for name in CASES}
    assert forms["fsdp sharded"]
    assert forms["fsdp2"]
    assert not forms["fsdp full"]
