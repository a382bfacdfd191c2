"""A reward model on two and four ranks, full or sharded, from random weights and from a folder, as on one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD
from transformers import AutoModelForSequenceClassification

from lion_lightning.callbacks import HuggingFaceExport
from lion_lightning.models.checkpoints.export import export_checkpoint
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.dtensor import full_parameters
from lion_lightning.modules.reward import RewardModule
from lion_lightning.strategies import FSDP2Strategy
from tests import tiny
from tests.distributed.fsdp1 import FSDPOnCPU
from tests.distributed.ranks import run_ranks
from tests.tiny import Rows, pairs, tokenizer_folder, trainer

pytestmark = pytest.mark.distributed

# Rows of one to three pairs; with several ranks the last one's partners have nothing to do.
BATCHES = [
    pairs((5, 4, 7), (3, 6, 2), seed=1),
    pairs((4, 1, 3), seed=2),
    pairs((2, 5, 5), (6, 3, 3), (2, 2, 2), seed=3),
    pairs((3, 3, 4), seed=4).without_targets(),
]
STRATEGIES: dict[str, Any] = {"ddp": lambda: "ddp", "fsdp2": FSDP2Strategy, "fsdp1": FSDPOnCPU}
CASES: dict[str, LoRASpec | None] = {"all weights": None, "adapters": LoRASpec(r=4)}


class Warnings(logging.Handler):
    """What models warn of as they are built."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def fit(rank: int, world: int, folder: Path, strategy: str, lora: LoRASpec | None) -> dict[str, Any]:
    torch.manual_seed(0)
    logging.getLogger("lion_lightning.models").addHandler(warnings := Warnings())
    module = RewardModule(
        PolicySpec(str(folder / "model"), lora=lora),
        tokenizer=TokenizerSpec(str(folder)),
        margin=0.1,
        center_rewards_coefficient=0.05,
        optimizer=lambda groups: SGD(groups, lr=0.2),
    )
    ranks = {"strategy": STRATEGIES[strategy](), "devices": world} if world > 1 else {}
    settings: dict[str, Any] = {"max_epochs": 2, "num_sanity_val_steps": 0, "default_root_dir": folder / strategy}
    settings["accumulate_grad_batches"] = 4 // world
    exported = folder / f"{strategy} {world} {lora is None}"
    run = trainer(**settings, **ranks, gradient_clip_val=1.0, callbacks=[HuggingFaceExport(str(exported))])
    run.fit(module, Rows(BATCHES, rank, world), Rows(BATCHES, rank, world))
    metrics = {name: value.item() for name, value in run.callback_metrics.items()}
    weights = {name: tensor.clone() for name, tensor in full_parameters(module.policy_model)}
    return {"weights": weights, "metrics": metrics, "export": str(exported), "warnings": warnings.texts}


def fit_all(rank: int, world: int, folder: Path, strategies: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Results by strategy and case."""
    return {
        strategy: {name: fit(rank, world, folder, strategy, lora) for name, lora in CASES.items()}
        for strategy in strategies
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tokenizer_folder(tmp_path_factory.mktemp("ranks"))
    tiny.policy(tie_word_embeddings=False).causal_lm.save_pretrained(made / "model")  # with a head of its own
    return made


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    return fit_all(0, 1, folder, ("ddp",))["ddp"]


@pytest.fixture(scope="module", params=[(2, ("ddp", "fsdp2", "fsdp1")), (4, ("ddp", "fsdp2"))], ids=["two", "four"])
def several(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    world, strategies = request.param
    return run_ranks(fit_all, folder, folder, strategies, world=world)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_several_ranks_train_and_export_as_one(one: Any, several: Any, strategy: str, case: str) -> None:
    if strategy not in several[0]:
        pytest.skip("fsdp1 runs on two ranks")
    alone = one[case]
    for rank in several:
        found = rank[strategy][case]
        assert not found["warnings"]  # such as that a folder could not be loaded sharded
        assert found["metrics"].keys() == alone["metrics"].keys()
        for name, value in alone["metrics"].items():
            assert found["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(found["weights"][name], weight, rtol=1e-5, atol=1e-6)
    expected = AutoModelForSequenceClassification.from_pretrained(alone["export"]).state_dict()
    exported = AutoModelForSequenceClassification.from_pretrained(several[0][strategy][case]["export"]).state_dict()
    assert exported.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(exported[name], tensor, rtol=1e-5, atol=1e-6)


def resume(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Two epochs at once, and one epoch, saved as shards, and another from there; each on two ranks."""
    results: dict[str, Any] = {}
    for name, epochs, start in (("whole", 2, None), ("half", 1, None), ("resumed", 2, "half")):
        torch.manual_seed(0)
        module = RewardModule(
            PolicySpec(str(folder / "model")),
            tokenizer=TokenizerSpec(str(folder)),
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2),
        )
        run = trainer(max_epochs=epochs, num_sanity_val_steps=0, strategy=FSDP2Strategy(), devices=world)
        run.fit(module, Rows(BATCHES, rank, world), ckpt_path=start and folder / f"{start}.ckpt")
        run.save_checkpoint(folder / f"{name}.ckpt")
        results[name] = {key: tensor.clone() for key, tensor in full_parameters(module.policy_model)}
    return results


def test_a_head_that_one_rank_has_no_row_of_is_saved_resumed_and_exported(folder: Path) -> None:
    both = run_ranks(resume, folder, folder)
    for rank in both:
        assert rank["resumed"].keys() == rank["whole"].keys()
        assert all(torch.equal(rank["resumed"][name], weight) for name, weight in rank["whole"].items())
    out = export_checkpoint(folder / "resumed.ckpt", folder / "out")
    exported = AutoModelForSequenceClassification.from_pretrained(out).state_dict()
    assert torch.equal(exported["score.weight"], both[0]["whole"]["model.score.weight"])
    assert not torch.equal(both[0]["half"]["model.score.weight"], both[0]["whole"]["model.score.weight"])
