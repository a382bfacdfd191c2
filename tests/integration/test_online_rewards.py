"""Rounds with parts of a score, reward shaping and several answers to monitor prompts: made, logged, resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lion_lightning.judges import VerifierJudge, WeightedJudge
from lion_lightning.rollouts.rewards import SoftOverlongPunishment, UnfinishedScore
from lion_lightning.rollouts.rounds import Round
from lion_lightning.types import Prompt
from tests.integration.online import GroupOnline, Judge, KilledError, Sampler


def even(prompt: Prompt, answer: str) -> bool:
    """Right if the first word has an even number."""
    return answer[1:3].strip().isdigit() and int(answer[1:3]) % 2 == 0


def sampling(online: GroupOnline, kill: int | None = None, **changes: Any) -> Any:
    """Answers of up to 5 tokens, of which the third and later ones cost something, and being cut off costs all."""
    judge = WeightedJudge([VerifierJudge(even, 10.0), Judge(kill)], [1.0, 0.5], ["even", "high"])
    shaping = [UnfinishedScore(-10.0), SoftOverlongPunishment(6, 4)]
    return online.sampling(Sampler(), judge, shaping=shaping, monitor_samples=4, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> list[Round]:
    online = GroupOnline(tmp_path_factory.mktemp("finished"))
    online.fit("run", sampling(online), max_epochs=2)
    return online.rounds("run")


def test_the_parts_of_every_score_add_up_and_are_logged(finished: list[Round]) -> None:
    first, second = finished
    for made in (first, second):
        for rollout in made.rollouts:
            assert rollout.num_sampled == 4  # of a monitor prompt, too
            assert rollout.num_added == (made is second and rollout.monitor)
            parts = rollout.by_judge
            assert [*parts] == ["even", "high", "UnfinishedScore", "SoftOverlongPunishment"]
            for place, answer in enumerate(rollout.answers):
                judged = parts["even"][place] + 0.5 * parts["high"][place]
                over = {3: -0.25, 4: -0.5, 5: -0.75}.get(len(answer.token_ids or ()), 0.0)
                cut = answer.finish_reason == "length"
                assert rollout.scores[place] == pytest.approx((-10 if cut else judged) + over)
                assert rollout.right[place] == (parts["even"][place] == 10)
    logged = second.summary["metrics"]
    assert {f"on_policy/reward/{name}" for name in parts} <= logged.keys()
    passed = [logged[f"on_policy/pass_at_{k}"] for k in (1, 2, 4)]
    assert passed == sorted(passed)
    assert 0 < passed[0] < passed[2]
    assert 0 <= logged["on_policy/majority_at_4"] <= 1
    assert 0 < logged["on_policy/prompts_with_signal"] <= 1


def test_a_run_killed_while_judging_ends_with_the_same_rounds(
    finished: list[Round], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    online = GroupOnline(tmp_path)
    with pytest.raises(KilledError):
        online.fit("run", sampling(online, kill=2), max_epochs=2)
    online.fit("run", sampling(online), max_epochs=2)
    for one, other in zip(finished, online.rounds("run"), strict=True):
        assert answers_and_scores(one) == answers_and_scores(other)
    assert (
        "SoftOverlongPunishment: max_tokens is 6, but the sampler's max_new_tokens is 5; set them alike" in caplog.text
    )


def answers_and_scores(made: Round) -> list[Any]:
    return [(r.answers, r.scores, r.by_judge, r.right, r.final_answers, r.usable) for r in made.rollouts]
