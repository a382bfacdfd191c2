"""DPO on two ranks, whole or sharded: the reference pass is shared out, and weights and metrics are those of one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD

from lion_lightning.losses.pairs.dpo import SigmoidLoss
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.dtensor import full_parameters
from lion_lightning.modules.dpo import DPOModule
from lion_lightning.references.base import AdapterOffReference, FrozenReference, MixedReference, Reference
from lion_lightning.references.cached import CachedReference
from lion_lightning.strategies import FSDP2Strategy
from tests.distributed.fsdp1 import FSDPOnCPU
from tests.distributed.ranks import run_ranks
from tests.tiny import Rows, config, pairs, tokenizer_folder, trainer

pytestmark = pytest.mark.distributed

# Rows of one to three pairs; on two ranks the last one's partner has nothing to do.
BATCHES = [
    pairs((5, 4, 7), (3, 6, 2), seed=1),
    pairs((4, 1, 3), seed=2),
    pairs((2, 5, 5), (6, 3, 3), (2, 2, 2), seed=3),
    pairs((3, 3, 4), seed=4).without_targets(),
]
REFERENCES: dict[str, dict[str, Any]] = {
    "cached": {"reference": CachedReference},
    "frozen": {"reference": FrozenReference},
    "mixed": {"reference": MixedReference},
    "adapter off": {"reference": AdapterOffReference, "lora": LoRASpec(r=4)},
}
STRATEGIES = {"ddp": lambda: "ddp", "fsdp2": FSDP2Strategy, "fsdp1": FSDPOnCPU}


class Counting(DPOModule):
    """Counts the policy's forwards outside of training steps."""

    forwards = 0

    def configure_model(self) -> None:
        super().configure_model()
        self.policy_model.register_forward_pre_hook(self.count)

    def count(self, *_: Any) -> None:
        self.forwards += not torch.is_grad_enabled()


def fit(
    rank: int, world: int, folder: Path, strategy: Any, reference: type[Reference], lora: LoRASpec | None = None
) -> dict[str, Any]:
    torch.manual_seed(0)
    module = Counting(
        PolicySpec(config=config(), lora=lora),
        tokenizer=TokenizerSpec(str(folder)),
        loss=SigmoidLoss(0.5),
        reference=reference(),
        optimizer=lambda groups: SGD(groups, lr=0.5),
    )
    ranks = {"strategy": strategy(), "devices": world} if world > 1 else {}
    settings = {"max_epochs": 2, "accumulate_grad_batches": 4 // world, "num_sanity_val_steps": 0}
    run = trainer(**settings, **ranks)
    run.fit(module, Rows(BATCHES, rank, world), Rows(BATCHES, rank, world))
    metrics = {name: value.item() for name, value in run.callback_metrics.items()}
    weights = {name: tensor.clone() for name, tensor in full_parameters(module.policy_model)}
    return {"weights": weights, "metrics": metrics, "forwards": module.forwards}


def fit_all(rank: int, world: int, folder: Path, strategies: Iterable[str] = STRATEGIES) -> dict[str, dict[str, Any]]:
    """Results by strategy and reference."""
    results: dict[str, dict[str, Any]] = {}
    for strategy in strategies:
        os.environ["LION_CACHE"] = str(folder / f"cache of {world} {strategy}")
        results[strategy] = {
            name: fit(rank, world, folder, STRATEGIES[strategy], **how) for name, how in REFERENCES.items()
        }
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder = tokenizer_folder(tmp_path_factory.mktemp("ranks"))
    return fit_all(0, 1, folder, ["ddp"])["ddp"], run_ranks(fit_all, folder, folder)


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_train_as_one(results: Any, strategy: str, kind: str) -> None:
    one, both = results[0][kind], [rank[strategy][kind] for rank in results[1]]
    nats = max(abs(value) for name, value in one["metrics"].items() if "logps" in name)
    for rank in both:
        assert rank["metrics"].keys() == one["metrics"].keys()
        for name, value in one["metrics"].items():
            # Ratios are small differences of log-probs, and have their errors of rounding.
            within = 1e-6 * nats if "rewards" in name or "log_ratio" in name else 1e-6
            assert rank["metrics"][name] == pytest.approx(value, rel=1e-5, abs=within), name
        for name, weight in one["weights"].items():
            torch.testing.assert_close(rank["weights"][name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_reference_pass_is_shared_out(results: Any, strategy: str) -> None:
    one, both = results
    validation = 2 * len(BATCHES)  # two epochs
    assert one["cached"]["forwards"] == 3 + validation  # the batch without pairs needs no log-probs
    ranks = [rank[strategy]["cached"]["forwards"] for rank in both]
    assert ranks == [2 + validation // 2] * 2  # ranks keep in step
