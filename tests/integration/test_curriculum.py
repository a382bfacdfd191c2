"""Rounds that ask again what the policy answers right sometimes, killed or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lion_lightning import Source
from lion_lightning.rollouts.prompts import DynamicSampling, PassRates
from lion_lightning.rollouts.rounds import Round
from tests.integration.online import GroupOnline, Judge, KilledError, Online, Sampler, Watch

pytestmark = pytest.mark.filterwarnings("ignore")


class Verifies(Judge):
    """Right: every answer to the prompts of rows 0, 3, 6, ..., none to 1, 4, ..., one of two to the others."""

    right_from = 1.0

    def score(self, prompts: Any, answers: Any) -> Any:
        super().score(prompts, answers)
        scores = []
        for prompt, row in zip(prompts, answers, strict=True):
            kind = prompt.row["row"] % 3
            scores.append([float(kind == 0 or (kind == 2 and place % 2)) for place in range(len(row))])
        return scores

    def identity(self) -> str:
        return "verifies"


def sampling(online: Online, sampler: Any = None, **changes: Any) -> Any:
    settings = {"prompts_per_round": 15, "chunk_size": 5, "curriculum": PassRates(), **changes}
    return online.sampling(sampler or Sampler(), Verifies(), **settings)


def data(online: Online) -> Any:
    return online.data(prompts=[Source(str(online.folder / "prompts.jsonl"), fraction=2.0)])


def kinds(made: Round) -> Sequence[int]:
    return [rollout.prompt.row["row"] % 3 for rollout in made.rollouts if not rollout.monitor]


@pytest.fixture
def groups(tmp_path: Path) -> Online:
    return GroupOnline(tmp_path, every=1)


def test_the_second_pass_begins_with_what_is_right_sometimes(groups: Online, caplog: pytest.LogCaptureFixture) -> None:
    """30 prompts twice, 15 a round: two rounds ask each once, the third what had half of its answers right."""
    groups.fit("run", sampling(groups), data=data(groups), max_epochs=3)
    rounds = groups.rounds("run")
    first = [*kinds(rounds[0]), *kinds(rounds[1])]
    assert sorted(first) == sorted(number % 3 for number in first)
    sometimes = first.count(2)
    assert 0 < sometimes < 15
    assert kinds(rounds[2])[:sometimes] == [2] * sometimes
    assert 2 not in kinds(rounds[2])[sometimes:]
    assert f"round 2: PassRates would not ask {15 - sometimes} of its 15 prompts" in caplog.text


@pytest.mark.slow
def test_a_killed_run_reads_the_same_from_disk(groups: Online) -> None:
    dynamic = DynamicSampling(groups=4, most=1.5)
    whole = groups.fit("whole", sampling(groups, dynamic=dynamic), data=data(groups), max_epochs=3)
    with pytest.raises(KilledError):
        groups.fit("killed", sampling(groups, dynamic=dynamic), Watch((2, 0)), data=data(groups), max_epochs=3)
    groups.rounds("killed")[2].path.unlink()  # as if it had not been made yet
    resumed = groups.fit("killed", sampling(groups, dynamic=dynamic), data=data(groups), max_epochs=3)
    assert [made.rollouts for made in groups.rounds("killed")] == [made.rollouts for made in groups.rounds("whole")]
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


@pytest.mark.slow
def test_the_rounds_of_another_run_choose_from_the_start(groups: Online) -> None:
    groups.fit("measure", sampling(groups, curriculum=None, prompts_per_round=30), max_epochs=1)
    other = groups.folder / "measure" / "rounds"
    groups.fit("run", sampling(groups, curriculum=PassRates(rounds=other), prompts_per_round=5), max_epochs=1)
    assert kinds(groups.rounds("run")[0]) == [2] * 5
