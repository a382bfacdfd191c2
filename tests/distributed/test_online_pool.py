"""A pool on two ranks: sharded weights are gathered, each rank loads the other models, and the round is that of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lion_lightning import PolicySpec, TokenizerSpec
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.rollouts.rounds import find_rounds
from lion_lightning.sampling import FrozenSampler, PooledSampler, SamplingSettings
from lion_lightning.strategies import FSDP2Strategy
from tests import tiny
from tests.distributed.ranks import run_ranks
from tests.distributed.test_online import opened
from tests.integration.online import Judge, Online, Sampler

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]


def fit(rank: int, world: int, folder: Path, name: str) -> list[str]:
    """A round of the pool; the questions that this rank's policy was asked."""
    online, own = opened(folder), Sampler()
    other = FrozenSampler(str(folder / "other"), SamplingSettings(temperature=1.0, max_new_tokens=5))
    sampling = online.sampling(PooledSampler({"policy": own, "other": other}, "policy"), Judge(), num_samples=2)
    ranks: dict[str, Any] = {"strategy": FSDP2Strategy(), "devices": world} if world > 1 else {}
    online.fit(name, sampling, max_epochs=1, **ranks)
    return own.asked


def test_the_round_of_two_ranks_is_that_of_one(tmp_path: Path) -> None:
    Online(tmp_path)
    torch.manual_seed(1)
    policy = PolicySpec(config=tiny.config(num_hidden_layers=1)).build()
    tokenizer = TokenizerSpec(str(tiny.tokenizer_folder(tmp_path / "other"))).load()
    RolloutPolicy(policy, tokenizer).write(tmp_path / "other")
    fit(0, 1, tmp_path, "one")
    asked = run_ranks(fit, tmp_path, tmp_path, "two")
    assert all(asked)  # each rank had its chunks
    one, two = (find_rounds(tmp_path / name / "rounds")[0].rollouts for name in ("one", "two"))
    assert one == two
    assert {answer.model for rollout in one for answer in rollout.answers} == {"policy", "other"}
