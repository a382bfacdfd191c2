"""The order of prompts by what rounds on disk have measured of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from typing_extensions import override

from lion_lightning.judges.verifiers import ExactMatch, VerifierJudge
from lion_lightning.rollouts.files import write_rollouts
from lion_lightning.rollouts.prompts import Curriculum, PassRates
from lion_lightning.rollouts.prompts.history import PromptHistory
from lion_lightning.rollouts.prompts.pool import PromptPool
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.rollouts.rounds import JudgedPrompt, round_path
from lion_lightning.types import Answer, Prompt


class Pool:
    """Prompts whose hashes are their positions."""

    def group(self, position: int) -> bytes:
        return position.to_bytes(16)


POOL = cast(PromptPool, Pool())


def write(folder: Path, number: int, rights: dict[int, tuple[bool, ...]], **more: Any) -> Path:
    """A round in which the answers to each prompt were right or not."""
    rollouts = []
    for position, right in rights.items():
        answers = tuple(Answer(f"a{place}", token_ids=(3,)) for place in range(len(right)))
        scores = tuple(map(float, right))
        prompt = Prompt(f"p{position}", (3,))
        rollouts.append(Rollout(prompt, answers, position.to_bytes(16), scores=scores, right=right, **more))
    write_rollouts(round_path(folder, number), rollouts, {"round": number, "identity": "x"})
    return round_path(folder, number)


YES, NO = True, False


def test_those_that_are_right_sometimes_come_again_and_the_others_last(tmp_path: Path) -> None:
    write(tmp_path, 0, {0: (YES, YES), 1: (YES, NO), 2: (NO, NO)})
    history = PromptHistory(PassRates())
    history.read(tmp_path, [0])
    # Each prompt twice, but for 3 and 4, which were not asked yet; the first times of 0, 1 and 2 are over.
    assert history.rest([2, 0, 1, 3, 0, 4, 1, 2], POOL) == [3, 4, 1, 0, 2]


def test_bounds_and_the_latest_round_count(tmp_path: Path) -> None:
    write(tmp_path, 0, {0: (YES, NO, NO, NO), 1: (YES, YES, NO, NO), 2: (YES, YES, YES, NO)})
    write(tmp_path, 1, {2: (YES, YES, NO, NO)})
    history = PromptHistory(PassRates(0.25, 0.75))
    history.read(tmp_path, [0])
    history.read(tmp_path, [0, 1])  # round 0 is not read again
    assert history.rest([0, 1, 2] * 3, POOL) == [1, 1, 2, 0, 0]  # 0.25 is not above 0.25; 2 has 0.5 now


def test_the_rounds_of_another_run_measure_but_ask_nothing(tmp_path: Path) -> None:
    other = tmp_path / "other"
    write(other, 0, {0: (NO, NO), 1: (YES, NO), 2: (YES, YES)})
    (other / "set_aside").mkdir()
    write(other / "set_aside", 0, {0: (YES, NO)})
    history = PromptHistory(PassRates(rounds=other))
    assert history.rest([0, 1, 2, 3], POOL) == [1, 3, 0, 2]
    write(tmp_path, 0, {0: (YES, NO), 3: (NO, NO)})
    history.read(tmp_path, [0])
    assert history.rest([0, 1, 2, 3], POOL) == [1, 2]  # 0 and 3 were asked
    assert history.rest([0, 1, 2, 3, 3, 0], POOL) == [1, 0, 2, 3]  # this run's word on 0 replaces the other's


def test_a_threshold_says_what_is_right_where_no_verifier_does() -> None:
    judged = JudgedPrompt(b"", (0.2, 0.7, 0.8, 0.9), ())
    assert PassRates(threshold=0.7).measure(judged) == 0.75
    assert PassRates().measure(judged) is None
    assert "does not say which answers are right" in PassRates().misfit(object())
    assert PassRates(threshold=0.7).misfit(object()) == ""
    assert PassRates().misfit(VerifierJudge(ExactMatch("answer"))) == ""


@pytest.mark.parametrize("bounds", [(0.5, 0.5), (0.7, 0.3), (1.0, 2.0), (-1.0, 0.0), (float("nan"), 1.0)])
def test_bounds_that_leave_nothing_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="PassRates: no rate is above"):
        PassRates(*bounds)


def test_monitor_prompts_and_added_answers_say_nothing(tmp_path: Path) -> None:
    write(tmp_path, 0, {0: (NO, NO, YES)}, num_added=1)  # the last is the row's own
    write(tmp_path, 1, {1: (YES, YES)}, monitor=True)
    history = PromptHistory(PassRates())
    history.read(tmp_path, [0, 1])
    assert history.rest([0, 0, 1, 1], POOL) == [1, 1, 0]


def test_rounds_that_are_gone_damaged_or_say_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"round-0000.arrow: gone, and which prompts it asked decides"):
        PromptHistory().read(tmp_path, [0])
    path = write(tmp_path, 0, {0: (YES, NO)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"round-0000.arrow: damaged"):
        PromptHistory(PassRates()).read(tmp_path, [0])
    with pytest.raises(ValueError, match=r"round-0000.arrow: damaged"):
        PromptHistory(PassRates(rounds=tmp_path))
    with pytest.raises(ValueError, match="no round there measures a prompt; name a folder of judged rounds"):
        PromptHistory(PassRates(rounds=tmp_path / "empty"))


class HardestFirst(Curriculum):
    """Those with the lowest scores first; new ones before all."""

    @override
    def measure(self, judged: JudgedPrompt) -> float | None:
        return max(judged.scores, default=None)

    @override
    def place(self, measured: float | None) -> float:
        return -1.0 if measured is None else measured


def test_an_order_of_the_users_own(tmp_path: Path) -> None:
    write(tmp_path, 0, {0: (YES, NO), 1: (NO, NO), 2: (NO, NO)})
    history = PromptHistory(HardestFirst())
    history.read(tmp_path, [0])
    assert history.rest([0, 1, 2] * 2 + [3], POOL) == [3, 1, 2, 0]
