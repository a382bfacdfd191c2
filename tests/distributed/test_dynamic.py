"""Rounds of several waves, on several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lion_lightning.rollouts.rounds import find_rounds
from tests.distributed.ranks import run_ranks
from tests.integration.online import GroupOnline
from tests.integration.test_dynamic import Counted, Ties, sampling

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]


def fit(rank: int, world: int, folder: Path, name: str) -> int:
    """Two rounds; how often this rank opened the sampler."""
    online, sampler = GroupOnline.__new__(GroupOnline), Counted()
    online.folder, online.start, online.every = folder, folder / "start", 100
    ranks: dict[str, Any] = {"strategy": "ddp", "devices": world} if world > 1 else {}
    online.fit(name, sampling(online, sampler, Ties(), prompts_per_round=5), max_epochs=2, **ranks)
    return sampler.opened


def test_waves_of_two_ranks_are_those_of_one(tmp_path: Path) -> None:
    GroupOnline(tmp_path)
    assert fit(0, 1, tmp_path, "one") == 2
    assert run_ranks(fit, tmp_path, tmp_path, "two") == [2, 2]
    first, second = (find_rounds(tmp_path / name / "rounds") for name in ("one", "two"))
    # Gradients of two ranks are summed in another order, and the second round is of another policy.
    assert first[0].rollouts == second[0].rollouts
    assert first[0].metadata == second[0].metadata
    assert len(first[0].metadata["waves"]) > 1
    assert [len(made.rollouts) for made in second] == [sum(n for n, _ in made.metadata["waves"]) + 4 for made in second]
