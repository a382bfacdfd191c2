"""References of trees on several ranks: a killed pass goes on, also on other ranks, and one process trains the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException
from torch.optim import SGD

from lion_lightning.data.packing.collate import collate
from lion_lightning.distributed.ranks import Ranks
from lion_lightning.losses.pairs.dpo import SigmoidLoss
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.dtensor import full_parameters
from lion_lightning.modules.dpo import DPOModule
from lion_lightning.references import scoring
from lion_lightning.references.cached import CachedReference, RefreshedReference
from lion_lightning.strategies import FSDP2Strategy
from lion_lightning.types import PackedBatch, Sample, SampleSegment
from tests.distributed.ranks import run_ranks
from tests.tiny import Rows, config, tokenizer_folder, trainer

pytestmark = pytest.mark.distributed

STRATEGIES: dict[str, Any] = {"ddp": lambda: "ddp", "fsdp2": FSDP2Strategy}


def tree(number: int) -> Sample:
    """A prompt of 6 tokens with answers of 3, 4 and 5 tokens, or, in the tree after it, of 6, the same 3, and 7."""
    tokens = np.random.default_rng(number // 2).integers(3, 101, (6, 7)).astype(np.int32)
    answers = [tokens[k, : 3 + k] for k in ((3, 0, 4) if number % 2 else (0, 1, 2))]
    segments = [SampleSegment(answer, np.ones(len(answer), np.bool_), 0) for answer in answers]
    prompt = SampleSegment(tokens[5, :6], np.zeros(6, np.bool_))
    return Sample((prompt, *segments), number, pairs=((0, 1), (1, 2)))


BATCHES = [collate([tree(number)], 64) for number in range(8)]


def fit(
    rank: int, world: int, folder: Path, strategy: str, kind: str = "cached", kill: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Train, and count forwards without a gradient.

    Args:
        rank: Of this process.
        world: Number of processes.
        folder: Of tokenizer and cache.
        strategy: Key of ``STRATEGIES``.
        kind: ``cached`` or ``refreshed``.
        kill: Rank and forward at which that rank is killed.
    """
    os.environ["LION_CACHE"] = str(folder / "cache")
    scoring.FLUSH_SECONDS = -1.0
    torch.manual_seed(0)
    module = Counting(
        PolicySpec(config=config()),
        tokenizer=TokenizerSpec(str(folder)),
        loss=SigmoidLoss(0.5),
        reference=RefreshedReference() if kind == "refreshed" else CachedReference(),
        optimizer=lambda groups: SGD(groups, lr=0.5),
    )
    module.kill = kill[1] if kill and kill[0] == rank else None
    ranks = {"strategy": STRATEGIES[strategy](), "devices": world} if world > 1 else {}
    run = trainer(max_epochs=2, accumulate_grad_batches=4 // world, **ranks)
    run.fit(module, Rows(BATCHES, rank, world))
    weights = {name: tensor.clone() for name, tensor in full_parameters(module.policy_model)}
    return {"weights": weights, "tokens": module.tokens}


class Counting(DPOModule):
    """Notes the tokens of each forward of the policy without a gradient."""

    kill: int | None = None

    def configure_model(self) -> None:
        super().configure_model()
        self.tokens: list[int] = []
        self.policy_model.register_forward_pre_hook(self.count)

    def count(self, _: Any, inputs: tuple[PackedBatch]) -> None:
        if not torch.is_grad_enabled():
            if len(self.tokens) == self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            self.tokens.append(len(inputs[0].input_ids))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The results of one process, by kind of reference."""
    folders = {kind: tokenizer_folder(tmp_path_factory.mktemp(kind)) for kind in ("cached", "refreshed")}
    return {kind: fit(0, 1, folder, "ddp", kind) for kind, folder in folders.items()}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-5, atol=1e-6)


def test_an_answer_of_two_trees_is_scored_once(alone: Any) -> None:
    assert alone["cached"]["tokens"] == [6 + 3 + 4 + 5, 6 + 6 + 7] * 4
    assert alone["refreshed"]["tokens"] == [18, 19] * 8  # in each of two epochs


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("world", [2, 4])
def test_a_killed_pass_goes_on_also_on_other_ranks(alone: Any, strategy: str, world: int, tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path)
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_ranks(fit, folder, folder, strategy, "cached", (1, 2))  # each of two ranks has done two of four batches
    for result in run_ranks(fit, folder, folder, strategy, world=world):
        assert len(result["tokens"]) == 4 // world  # the last four batches
        assert_same(result, alone["cached"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rank_that_lacks_nothing_keeps_step_with_one_that_does(alone: Any, strategy: str, tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path)
    torch.manual_seed(0)
    model = PolicySpec(config=config()).build()
    reference = CachedReference(cache_dir=folder / "cache")
    reference.attach(model, lambda spec: model)
    reference.precompute(BATCHES[::2], model, Ranks(), "training")  # all of rank 0, and an answer of each of rank 1's
    results = run_ranks(fit, folder, folder, strategy)
    assert [result["tokens"] for result in results] == [[6] * 4, [19] * 4]  # a prompt alone; all but that answer
    for result in results:
        assert_same(result, alone["cached"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_refreshed_reference_is_that_of_one_process(alone: Any, strategy: str, tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path)
    for result in run_ranks(fit, folder, folder, strategy, "refreshed"):
        assert len(result["tokens"]) == 2 * 4
        assert_same(result, alone["refreshed"])
