"""Half precision in pieces: as near to fp32 as one process is, with gradients added up over ranks in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import SGD

from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.dtensor import to_full
from lion_lightning.modules import SFTModule
from lion_lightning.strategies import FSDP2Strategy
from tests.distributed.ranks import run_ranks
from tests.tiny import Rows, config, row, tokenizer_folder, trainer

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

ROWS = [row(seed=seed) for seed in range(8)]
STEPS = 2
DTYPES = {"32-true": "float32", "bf16-mixed": "float32", "bf16-true": "bfloat16"}
UNIT = 2.0**-8
"""Half the distance of 1 to the next bf16: the most that one rounding is off, relative to the value."""
ERROR = 32**0.5 * UNIT
"""Of 32 roundings one after the other, to all sides: eight a layer, in two layers, forward and backward."""


class Recorder(SFTModule):
    """Keeps the loss of each optimizer step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: list[float] = []

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        super().on_before_optimizer_step(optimizer)
        self.losses.append(float(self.trainer.callback_metrics["train/loss"]))


def weights(module: SFTModule) -> Tensor:
    """All of them in a row, in fp32."""
    return torch.cat([to_full(p.detach()).float().flatten() for p in module.policy_model.parameters()])


def fit(rank: int, world: int, folder: Path, precision: str) -> dict[str, Any]:
    torch.manual_seed(0)
    spec = PolicySpec(config=config(), dtype=DTYPES[precision])  # type: ignore[arg-type]
    module = Recorder(spec, tokenizer=TokenizerSpec(str(folder)), optimizer=lambda groups: SGD(groups, lr=0.1))
    ranks: dict[str, Any] = {"strategy": FSDP2Strategy(), "devices": world} if world > 1 else {}
    run = trainer(max_steps=STEPS, precision=precision, accumulate_grad_batches=4 // world, **ranks)
    run.fit(module, Rows(ROWS, rank, world))
    kept = {str(parameter.dtype) for parameter in module.policy_model.parameters()}
    return {"losses": module.losses, "weights": weights(module), "dtypes": kept}


def fit_all(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Results by precision, and the dtypes in which gradients were added up."""
    added: set[str] = set()
    reduce = dist.reduce_scatter_single

    def watched(*args: Any, **kwargs: Any) -> Any:
        added.update(str(tensor.dtype) for tensor in (*args, *kwargs.values()) if isinstance(tensor, Tensor))
        return reduce(*args, **kwargs)

    dist.reduce_scatter_single = watched
    results: dict[str, Any] = {}
    for precision in DTYPES:
        results[precision] = fit(rank, world, folder, precision) | {"added": set(added)}
        added.clear()
    return results


def test_half_precision_in_pieces_is_that_of_one_process(tmp_path: Path) -> None:
    tokenizer_folder(tmp_path)
    torch.manual_seed(0)
    start = SFTModule(PolicySpec(config=config()), tokenizer=TokenizerSpec(str(tmp_path)))
    start.configure_model()
    one, two = fit_all(0, 1, tmp_path), run_ranks(fit_all, tmp_path, tmp_path)
    moved = (one["32-true"]["weights"] - weights(start)).norm()
    for precision, dtype in DTYPES.items():
        for rank in two:
            made, expected, exact = rank[precision], one[precision], one["32-true"]
            assert made["added"] == {"torch.float32"}
            assert made["dtypes"] == {f"torch.{dtype}"}
            off = (made["weights"] - expected["weights"]).norm()
            if precision == "32-true":
                assert made["losses"] == pytest.approx(expected["losses"], rel=1e-6)
                assert off < 1e-5 * moved
            else:
                assert made["losses"] == pytest.approx(expected["losses"], abs=ERROR)  # logits are of the order of one
                assert off < drift(dtype, moved, exact["weights"])
                assert (made["weights"] - exact["weights"]).norm() > 1e-3 * moved  # it was not fp32 all the time


def drift(dtype: str, moved: Tensor, all_weights: Tensor) -> Tensor:
    """How far two runs of the same precision may come apart, of which each has its own roundings.

    Their updates are both off by ``ERROR``. Where weights are bf16 themselves, those also round to different sides: of
    weights that are ``d`` apart on a grid of ``g``, ``d / g`` do, which then are ``g`` apart: ``g d`` in the square.
    """
    updates = 2 * ERROR * moved
    grid = 2 * UNIT * all_weights.norm() if dtype == "bfloat16" else torch.zeros(())
    apart: Tensor = updates + (STEPS * grid * updates).sqrt()
    return apart
