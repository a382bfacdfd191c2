"""Rounds that ask on until enough answers differ in score: what they ask, keep and say, killed or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from lion_lightning.rollouts.prompts import DynamicSampling
from lion_lightning.rollouts.rollout import Rollout, has_spread
from lion_lightning.rollouts.rounds import Round
from lion_lightning.rollouts.waves import SPARE
from tests.integration.online import GroupOnline, Judge, Online, Sampler, Watch

pytestmark = pytest.mark.filterwarnings("ignore")


class Ties(Judge):
    """Likes all answers to the prompts of even rows alike."""

    def score(self, prompts: Any, answers: Any) -> Any:
        scores = super().score(prompts, answers)
        for place, prompt in enumerate(prompts):
            if prompt.row["row"] % 2 == 0:
                scores[place] = [1.0] * len(scores[place])
        return scores

    def identity(self) -> str:
        return "ties"


class Counted(Sampler):
    """Counts how often it is opened."""

    opened = 0

    def open(self, policy: Any) -> None:
        self.opened += 1
        super().open(policy)


def sampling(online: Online, sampler: Any = None, judge: Any = None, **changes: Any) -> Any:
    dynamic = changes.pop("dynamic", DynamicSampling(most=3))
    settings = {"prompts_per_round": 6, "chunk_size": 2, "dynamic": dynamic, **changes}
    return online.sampling(sampler or Sampler(), judge or Ties(), **settings)


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Online:
    return GroupOnline(tmp_path_factory.mktemp("groups"), every=1)


def asked(made: Round) -> list[Rollout]:
    return [rollout for rollout in made.rollouts if not rollout.monitor]


def rows(rollouts: Sequence[Rollout]) -> list[int]:
    return [rollout.prompt.row["row"] for rollout in rollouts]


def test_a_round_asks_until_it_has_as_many_groups_as_it_should(groups: Online) -> None:
    sampler, watch = Counted(), Watch()
    groups.fit("asks", sampling(groups, sampler), watch, max_epochs=2)
    rounds = groups.rounds("asks")
    for made in rounds:
        kept = [rollout for rollout in asked(made) if has_spread(rollout)]
        spare = [rollout for rollout in asked(made) if rollout.left_out == SPARE]
        assert len(kept) == 6
        assert all(row % 2 for row in rows(kept))
        waves = made.metadata["waves"]
        assert len(waves) > 1
        assert waves[0][0] == 6
        assert sum(prompts for prompts, _ in waves) == len(asked(made)) <= 18
        assert sum(found for _, found in waves) == len(kept) + len(spare)
        assert len(made.rollouts) - len(asked(made)) == 4  # each monitor prompt once
        assert {a.token_ids for rollout in kept for a in rollout.answers} == watch.trained[made.number]
    assert len(set(rows([*asked(rounds[0]), *asked(rounds[1])]))) == sum(len(asked(made)) for made in rounds)
    assert sampler.opened == 2  # once a round
