"""Rounds that ask on until enough answers differ in score: what they ask, keep and say, killed or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lion_lightning.rollouts.prompts import DynamicSampling
from lion_lightning.rollouts.rollout import Rollout, has_spread
from lion_lightning.rollouts.rounds import Round
from lion_lightning.rollouts.waves import SPARE
from tests.integration.online import GroupOnline, Judge, KilledError, Online, Sampler, Watch
from tests.marks import exhaustive

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


@pytest.fixture(scope="module")
def whole(groups: Online) -> dict[str, Tensor]:
    """The run that nobody stops."""
    return groups.fit("whole", sampling(groups), max_epochs=2)


# The first wave has 3 chunks, and 2 of monitor prompts: call 5 is the first of the second wave.
@pytest.mark.slow
@pytest.mark.parametrize(("killed", "call"), [("sampling", 6), ("judging", 5), *exhaustive(("sampling", 5))])
def test_killed_in_the_second_wave(groups: Online, whole: dict[str, Tensor], killed: str, call: int) -> None:
    name = f"{killed} {call}"
    sampler, judge = Sampler(call if killed == "sampling" else None), Ties(call if killed == "judging" else None)
    with pytest.raises(KilledError):
        groups.fit(name, sampling(groups, sampler, judge), max_epochs=2)
    first = Sampler()
    resumed = groups.fit(name, sampling(groups, first), max_epochs=2)
    pairs = list(zip(groups.rounds("whole"), groups.rounds(name), strict=True))
    assert all(one.rollouts == other.rollouts and one.metadata == other.metadata for one, other in pairs)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert len(first.asked) == sum(len(one.rollouts) for one, _ in pairs) - len(sampler.asked)


@pytest.mark.slow
def test_a_killed_run_takes_up_after_all_prompts_that_a_round_asked(groups: Online, whole: dict[str, Tensor]) -> None:
    with pytest.raises(KilledError):
        groups.fit("training", sampling(groups), Watch((1, 0)), max_epochs=2)
    sampler = Sampler()
    resumed = groups.fit("training", sampling(groups, sampler), max_epochs=2)
    assert sampler.asked == []
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


@pytest.mark.slow
def test_a_round_that_is_gone_is_named_where_the_next_prompts_depend_on_it(groups: Online) -> None:
    with pytest.raises(KilledError):
        groups.fit("gone", sampling(groups), Watch((1, 1)), max_epochs=2)
    groups.rounds("gone")[0].path.unlink()
    with pytest.raises(ValueError, match=r"round-0000.arrow: gone, and which prompts it asked decides"):
        groups.fit("gone", sampling(groups), max_epochs=3)


@pytest.mark.slow
def test_pairs_that_are_ties_are_asked_for_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    pairs = Online(tmp_path_factory.mktemp("pairs"))
    sampler = Counted()
    pairs.fit("run", sampling(pairs, sampler, dynamic=DynamicSampling(most=3, in_turns=True)), max_epochs=2)
    assert sampler.opened == sum(len(made.metadata["waves"]) for made in pairs.rounds("run"))  # once a wave
    for made in pairs.rounds("run"):
        assert made.summary["report"]["kept"]["pairs"] == 6
        assert sum(map(has_spread, made.rollouts)) == 6
        assert len(made.metadata["waves"]) > 1


@pytest.mark.slow
def test_prompts_run_out_without_an_end_of_the_run(groups: Online, caplog: pytest.LogCaptureFixture) -> None:
    """30 prompts, 15 of them ties, for three rounds of 10: the first may ask no prompt that a later round needs."""
    dynamic = DynamicSampling(most=3)
    groups.fit("out", sampling(groups, prompts_per_round=10, dynamic=dynamic))
    rounds = groups.rounds("out")
    assert [len(asked(made)) for made in rounds] == [10, 10, 10]
    assert caplog.text.count("where dynamic sampling wants 10") == 3
    assert "no more are left without the 20 that later rounds need" in caplog.text
    caplog.clear()
    groups.fit("shared", sampling(groups, prompts_per_round=None, dynamic=dynamic))
    for made in groups.rounds("shared"):  # 30 prompts for 3 rounds that may ask thrice what they want: 3 of up to 9
        odd = sum(row % 2 for row in rows(asked(made)))
        assert len(asked(made)) <= 9
        assert sum(map(has_spread, made.rollouts)) == min(odd, 3)
        assert odd >= 3 or len(asked(made)) == 9
