"""Two ranks give the gradients, weights and metrics of one, whatever each of them holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import SGD, AdamW

from lion_lightning.models.embeddings import TrainableRows, token_embeddings
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules import SFTModule
from lion_lightning.types import PackedBatch
from tests.distributed.ranks import run_ranks
from tests.tiny import TREE, VOCABULARY, Rows, config, policy, row, tokenizer_folder, trainer

pytestmark = pytest.mark.distributed

# Ten rows of 1 to 24 supervised tokens; four a step, so that the last step has two.
ROWS = [row(seed=seed, supervised=range(25 - seed**2 // 4, 25) if seed > 1 else None) for seed in range(10)]
UNEVEN = [*ROWS[:3], ROWS[3].without_targets(), ROWS[4].without_targets(), ROWS[5]]
WEIGHTED = [replace(b, target_weights=torch.linspace(0.01, 0.5, len(b.targets))) for b in ROWS[6:9]] + ROWS[9:]
CHOSEN = [2, 60, 90]  # of 101 rows; two ranks hold 51 and 50 of them, so the second one's range is shifted
RUNS: dict[str, dict[str, Any]] = {
    "token_mean": {"rows": ROWS, "accumulate": 4},
    "sum": {"rows": ROWS[:4], "accumulate": 4, "reduction": "sum", "rate": 0.001},
    "empty": {"rows": UNEVEN, "accumulate": 2},
    "weighted": {"rows": WEIGHTED, "accumulate": 2},
    "clipped": {"rows": ROWS[:4], "accumulate": 4, "gradient_clip_val": 0.5},
}


class Recorder(SFTModule):
    """Keeps the gradients, the gradient norm and the loss of each optimizer step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps: list[dict[str, Any]] = []

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        super().on_before_optimizer_step(optimizer)
        gradients = {name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None}
        logged = {name: float(self.trainer.callback_metrics[name]) for name in ("train/loss", "train/grad_norm")}
        self.steps.append({"gradients": gradients, **logged})


def fit(
    rank: int, world: int, folder: Path, rows: list[PackedBatch], accumulate: int, rate: float = 0.1, **options: Any
) -> dict[str, Any]:
    """Fit and validate with a real Trainer; batches go to ranks in turn."""
    torch.manual_seed(0)
    reduction = options.pop("reduction", "token_mean")
    module = Recorder(
        PolicySpec(config=config()),
        tokenizer=TokenizerSpec(str(folder)),
        reduction=reduction,
        optimizer=lambda groups: SGD(groups, lr=rate),
    )
    strategy = {"strategy": "ddp", "devices": world} if world > 1 else {}
    run = trainer(max_epochs=1, accumulate_grad_batches=accumulate // world, **strategy, **options)
    run.fit(module, Rows(rows, rank, world), Rows(UNEVEN, rank, world))
    metrics = {name: value.item() for name, value in run.callback_metrics.items()}
    return {"steps": module.steps, "weights": module.state_dict(), "metrics": metrics}


def fit_all(rank: int, world: int, folder: Path) -> dict[str, dict[str, Any]]:
    return {name: fit(rank, world, folder, **settings) for name, settings in RUNS.items()}


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name] - value).norm() <= relative * value.norm(), name


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All runs in one process, and on each of two ranks."""
    folder = tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))
    return fit_all(0, 1, folder), run_ranks(fit_all, tmp_path_factory.mktemp("ranks"), folder)


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_give_the_gradients_and_weights_of_one(results: Any, name: str) -> None:
    one, two = results[0][name], [rank[name] for rank in results[1]]
    for rank in two:
        assert len(rank["steps"]) == len(one["steps"])
        for step, expected in zip(rank["steps"], one["steps"], strict=True):
            first = step is rank["steps"][0]
            assert_equal(step["gradients"], expected["gradients"], 1e-6 if first else 1e-5)
        assert_equal(rank["weights"], one["weights"], 1e-6)
    assert all(torch.equal(two[0]["weights"][key], two[1]["weights"][key]) for key in one["weights"])


@pytest.mark.parametrize("name", RUNS)
def test_every_rank_logs_the_global_steps_loss_and_norm(results: Any, name: str) -> None:
    one, two = results[0][name], [rank[name] for rank in results[1]]
    for rank in two:
        for step, expected in zip(rank["steps"], one["steps"], strict=True):
            assert step["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-5)
            assert step["train/grad_norm"] == pytest.approx(expected["train/grad_norm"], rel=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_validation_metrics_are_over_the_tokens_of_all_ranks(results: Any, name: str) -> None:
    one, two = results[0][name]["metrics"], [rank[name]["metrics"] for rank in results[1]]
    assert {"val/loss", "val/perplexity", "val/accuracy", "train/loss", "train/perplexity"} <= one.keys()
    for metrics in two:
        assert metrics.keys() == one.keys()
        assert metrics == pytest.approx(one, rel=1e-5)


def train_rows(tied: bool, world: int = 1) -> dict[str, Tensor]:
    """Whole weights after three AdamW steps on the rows ``CHOSEN``, the model sharded where there are several ranks."""
    model = policy(tie_word_embeddings=tied)
    if world > 1:
        for layer in (*model.causal_lm.model.layers, model):
            fully_shard(layer, mesh=init_device_mesh("cpu", (world,)))
        assert all(isinstance(weight, DTensor) for weight in token_embeddings(model.causal_lm))
    masked = token_embeddings(model.causal_lm)
    others = [p for p in model.parameters() if all(p is not weight for weight in masked)]
    optimizer = AdamW([{"params": others, "weight_decay": 0.5}, {"params": masked, "weight_decay": 0.0}], lr=0.01)
    chosen = TrainableRows(model.causal_lm, CHOSEN)
    batch = row(*TREE)
    batch.input_ids[[2, 9, 15]] = torch.tensor(CHOSEN)
    for _ in range(3):
        optimizer.zero_grad()
        torch.autograd.backward(-model(batch).values.mean())
        chosen.mask_gradients()
        optimizer.step()
    return {name: _whole(p).detach() for name, p in model.named_parameters()}


def train_rows_sharded(rank: int, world: int) -> dict[bool, dict[str, Tensor]]:
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    return {tied: train_rows(tied, world) for tied in (True, False)}


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def test_row_mask_on_sharded_embeddings_equals_the_unsharded_one(tmp_path: Path) -> None:
    for ranks in run_ranks(train_rows_sharded, tmp_path):
        for tied, weights in ranks.items():
            start = {name: p.detach() for name, p in policy(tie_word_embeddings=tied).named_parameters()}
            assert_equal(weights, train_rows(tied), 1e-5)
            tables = [name for name, weight in weights.items() if weight.shape[0] == VOCABULARY]
            assert len(tables) == (1 if tied else 2)
            for name in tables:
                assert (weights[name] != start[name]).any(1).nonzero().flatten().tolist() == CHOSEN
