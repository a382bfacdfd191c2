"""Rounds on two ranks: unequal work is no deadlock, the round is that of one rank, a failure is everybody's."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.dtensor import full_parameters
from lion_lightning.rollouts.rounds import find_rounds
from lion_lightning.sampling.base import SamplingSettings
from lion_lightning.sampling.transformers import TransformersSampler
from lion_lightning.strategies import FSDP2Strategy
from lion_lightning.types import Answer, Prompt
from tests import tiny
from tests.distributed.fsdp1 import FSDPOnCPU
from tests.distributed.ranks import run_ranks
from tests.integration.online import AllPairsOnline, GroupOnline, Judge, Online, Sampler, Watch, pairs_of
from tests.marks import exhaustive

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]


class Uneven(Sampler):
    """Takes longer for some prompts, so that the ranks are never ready together."""

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Answer]]:
        time.sleep(0.05 * (int(prompts[0].row["row"]) % 3 == 0))
        return super().sample(prompts, n, seed)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "sampler": "Sampler"}


class Failing(Uneven):
    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Answer]]:
        if torch.distributed.get_rank() == 1:
            raise ValueError("no luck here")
        return super().sample(prompts, n, seed)


def opened(folder: Path, kind: type[Online] = Online) -> Online:
    online = kind.__new__(kind)  # the folder is there already
    online.folder, online.start, online.every = folder, folder / "start", 100
    return online


def fit(rank: int, world: int, folder: Path, name: str, kind: type[Sampler], settings: dict[str, Any]) -> Any:
    online, watch, sampler = opened(folder), Watch(), kind()
    ranks: dict[str, Any] = {"strategy": "ddp", "devices": world} if world > 1 else {}
    epochs = settings.pop("max_epochs", 3)
    try:
        online.fit(name, online.sampling(sampler, Judge(), **settings), watch, max_epochs=epochs, **ranks)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return {"asked": sampler.asked, "trained": watch.trained}


@pytest.fixture
def online(tmp_path: Path) -> Online:
    return Online(tmp_path)


def test_rounds_of_unequal_work_go_through(online: Online) -> None:
    settings = {"max_epochs": 6, "prompts_per_round": 1, "chunk_size": 1, "monitor_prompts": 2, "num_samples": 12}
    results = run_ranks(fit, online.folder, online.folder, "run", Uneven, settings)
    rounds = find_rounds(online.folder / "run" / "rounds")
    assert len(rounds) == 6
    asked = [rollout.prompt.question for made in rounds for rollout in made.rollouts if not rollout.monitor]
    assert len(set(asked)) == 6
    for made in rounds:  # every rank trains on its own part of the same round
        parts = [result["trained"].get(made.number, set()) for result in results]
        assert set.union(*parts) == pairs_of(made)
    assert sum(len(result["asked"]) for result in results) == 18


def test_a_round_of_two_ranks_is_that_of_one(online: Online) -> None:
    settings = {"max_epochs": 1, "chunk_size": 3}
    fit(0, 1, online.folder, "one", Uneven, dict(settings))
    run_ranks(fit, online.folder, online.folder, "two", Uneven, settings)
    one, two = (find_rounds(online.folder / name / "rounds")[0].rollouts for name in ("one", "two"))
    assert one == two


def test_a_rank_that_fails_stops_all_and_what_was_finished_is_kept(online: Online) -> None:
    started = time.monotonic()
    said = run_ranks(fit, online.folder, online.folder, "run", Failing, {"max_epochs": 1})
    assert time.monotonic() - started < 60
    assert said[1] == "no luck here"
    assert "rank 1 failed: ValueError: no luck here" in said[0]
    again = run_ranks(fit, online.folder, online.folder, "run", Uneven, {"max_epochs": 1})
    # rank 0 had finished its own chunks: only those of rank 1 are asked
    assert again[0]["asked"] == []
    assert len(again[1]["asked"]) > 0


STRATEGIES: dict[str, Any] = {"ddp": DDPStrategy, "fsdp2": FSDP2Strategy, "fsdp1": FSDPOnCPU}
TRAINED = {"weights": None, "lora": LoRASpec(r=4)}
KINDS = {"pairs": Online, "all pairs": AllPairsOnline, "groups": GroupOnline}


class Case(NamedTuple):
    strategy: str
    what: str
    kind: str


def train(rank: int, world: int, folder: Path, case: Case) -> dict[str, Any]:
    """Two rounds, on all ranks where there are any; weights and logged metrics at the end."""
    online, place = opened(folder, KINDS[case.kind]), " ".join(case)
    os.environ["LION_CACHE"] = str(folder / "cache" / place)
    torch.manual_seed(0)
    module = online.module(
        optimizer=partial(SGD, lr=0.1, momentum=0.9), policy=PolicySpec(str(online.start), lora=TRAINED[case.what])
    )
    ranks: dict[str, Any] = {"strategy": STRATEGIES[case.strategy](), "devices": world} if world > 1 else {}
    options: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": 2 // world, "gradient_clip_val": 1.0}
    run = online.trainer(place, [online.sampling()], **options, **ranks)
    run.fit(module, datamodule=online.data())
    metrics = {key: value.item() for key, value in run.callback_metrics.items()}
    return {"metrics": metrics, "weights": {n: p.clone() for n, p in full_parameters(module.policy_model)}}


def train_all(rank: int, world: int, folder: Path, cases: Sequence[Case]) -> list[dict[str, Any]]:
    return [train(rank, world, folder, case) for case in cases]


FEW = [
    Case("fsdp2", "weights", "pairs"),
    Case("fsdp1", "lora", "pairs"),
    Case("ddp", "lora", "all pairs"),
    Case("ddp", "weights", "groups"),
    Case("fsdp2", "weights", "groups"),
]
MORE = [
    Case("fsdp2", "lora", "pairs"),
    Case("fsdp1", "weights", "pairs"),
    Case("fsdp2", "weights", "all pairs"),
    Case("fsdp2", "lora", "groups"),
]


@pytest.mark.parametrize("cases", [FEW, *exhaustive(MORE)])
def test_online_training_on_two_ranks_is_that_of_one_process(online: Online, cases: list[Case]) -> None:
    alone = {case: train(0, 1, online.folder, case._replace(strategy="one")) for case in cases}
    both = run_ranks(train_all, online.folder, online.folder, cases)
    for number, case in enumerate(cases):
        names = [" ".join(each) for each in (case._replace(strategy="one"), case)]
        rounds = [find_rounds(online.folder / name / "rounds") for name in names]
        assert len(rounds[0]) == len(rounds[1]) == 2
        for ours, theirs in zip(*rounds, strict=True):
            for attribute in ("answers", "pairs", "usable"):
                own, other = ([getattr(made, attribute) for made in each.rollouts] for each in (ours, theirs))
                assert own == other
        for rank in both:
            assert rank[number]["metrics"] == pytest.approx(alone[case]["metrics"], rel=1e-5, abs=1e-6)
            for key, weight in alone[case]["weights"].items():
                torch.testing.assert_close(rank[number]["weights"][key], weight, rtol=1e-5, atol=1e-6)


def sharded(rank: int, world: int, folder: Path) -> Any:
    torch.distributed.init_process_group("gloo")
    served = policy(folder)
    whole = {name: tensor.clone() for name, tensor in served.weights()}
    prompts = [Prompt("", tuple(range(3, 6 + number))) for number in range(1 + 4 * rank)]
    expected = answers(served, prompts)
    for layer in served.model.model.layers:
        fully_shard(layer)
    fully_shard(served.policy)
    given = answers(served, prompts)  # five prompts on one rank, one on the other
    gathered = dict(served.weights())
    torch.autograd.backward(served.policy(tiny.row(*tiny.TREE)).values.sum())
    gradient = served.model.lm_head.weight.grad.full_tensor()
    return {
        "same answers": given == expected,
        "same weights": all(torch.equal(gathered[name], whole[name]) for name in whole),
        "gradient": gradient,
    }


def policy(folder: Path) -> RolloutPolicy:
    torch.manual_seed(0)
    return RolloutPolicy(tiny.policy(), TokenizerSpec(str(folder)).load(), Ranks())


def answers(served: RolloutPolicy, prompts: Sequence[Prompt]) -> Any:
    sampler = TransformersSampler(SamplingSettings(temperature=1.0, max_new_tokens=5), batch_size=2)
    sampler.open(served)
    made = sampler.sample(prompts, 2, seed=1)
    sampler.close()
    return made


def test_a_sharded_policy_is_sampled_with_unequal_work_and_trains_on(tmp_path: Path) -> None:
    tiny.tokenizer_folder(tmp_path)
    results = run_ranks(sharded, tmp_path, tmp_path)
    served = policy(tmp_path)
    torch.autograd.backward(served.policy(tiny.row(*tiny.TREE)).values.sum())
    for result in results:
        assert result["same answers"]
        assert result["same weights"]
        assert torch.allclose(result["gradient"], served.model.lm_head.weight.grad, atol=1e-5)
