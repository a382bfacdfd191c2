"""Metrics of right and wrong answers, and of the parts of a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lion_lightning.judges import ExactMatch, MathAnswer, VerifierJudge, WeightedJudge
from lion_lightning.rollouts.files import write_rollouts
from lion_lightning.rollouts.metrics.rounds import round_metrics
from lion_lightning.rollouts.rewards import Scoring, UnfinishedScore
from lion_lightning.rollouts.rollout import Rollout, with_first_answer, with_usable
from lion_lightning.rollouts.rounds import Round
from lion_lightning.types import Answer, Prompt

PROMPT = Prompt("<q>1+1?", (5,), row={"answer": "2"}, where="f:1")


def answers(*texts: str) -> tuple[Answer, ...]:
    """A token for each character; a text that ends in .. was cut off."""
    found = []
    for text in texts:
        reason = "length" if text.endswith("..") else "stop"
        found.append(Answer(text.removesuffix(".."), reason, (7,) * len(text.removesuffix(".."))))
    return tuple(found)


def metrics_of(folder: Path, rollouts: Sequence[Rollout], scoring: Scoring) -> dict[str, float]:
    """Metrics of a round that was scored, written and read again."""
    scored = [with_usable(rollout, lambda answer: bool(answer.text)) for rollout in scoring.score(rollouts)]
    write_rollouts(folder / "round-0000.arrow", scored, {"round": 0, "identity": "x"})
    return round_metrics(Round(folder / "round-0000.arrow"))


ROUND = [
    Rollout(PROMPT, answers("2", "2..", "three", "three..")),
    Rollout(PROMPT, answers("2", "2", "2", "2")),
    Rollout(PROMPT, answers("4", "5", "4", "4")),
    Rollout(PROMPT, left_out="prompt longer than 3 tokens"),
]
MONITORS = [
    Rollout(PROMPT, answers("2", "2", "4", "5"), monitor=True),  # majority: 1/2, 1/2, 2/3, 1 for k = 1 to 4
    Rollout(PROMPT, answers("2", "4", "4", "4"), monitor=True),  # 1/4, 1/4, 0, 0
]


def test_right_and_wrong_answers_by_hand(tmp_path: Path) -> None:
    found = metrics_of(tmp_path, [*ROUND, *MONITORS], Scoring(VerifierJudge(ExactMatch())))
    wanted = {
        "pass_rate": 6 / 12,
        "none_right": 1 / 3,
        "all_right": 1 / 3,
        "prompts_with_signal": 1 / 3,
        "length_right": 1.0,
        "length_wrong": (5 + 5 + 4) / 6,
        "unfinished_right": 1 / 6,
        "unfinished_wrong": 1 / 6,
        "pass_at_1": (1 / 2 + 1 / 4) / 2,
        "pass_at_2": (1 - 1 / 6 + 1 / 2) / 2,
        "pass_at_4": 1.0,
        "majority_at_4": (1 + 0) / 2,
        "monitor_score": (1 / 2 + 1 / 4) / 2,
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert not [name for name in found if name.startswith("reward/")]  # one part is the score
    assert "majority_at_2" not in found


def test_parts_of_the_score_and_what_shaping_adds(tmp_path: Path) -> None:
    judge = WeightedJudge([VerifierJudge(ExactMatch(), 10.0), VerifierJudge(brief)], names=["correct", "brief"])
    found = metrics_of(tmp_path, ROUND, Scoring(judge, [UnfinishedScore(-10)]))
    wanted = {
        "reward/correct": 60 / 12,
        "reward/brief": 10 / 12,  # all but three
        "reward/UnfinishedScore": ((-10 - 11) + (-10 - 0)) / 12,
        "score": (60 + 10 - 21 - 10) / 12,
        "pass_rate": 0.5,  # the verifier's: an answer that was cut off may be right
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def brief(prompt: Prompt, answer: str) -> bool:
    return len(answer) < 4


def test_ratings_make_no_pass_rate(tmp_path: Path) -> None:
    class Rating:
        def score(self, prompts: Any, answers: Any) -> Any:
            return [[7.0] * len(texts) for texts in answers]

    found = metrics_of(tmp_path, [*ROUND, *MONITORS], Scoring(Rating()))
    assert not [name for name in found if "pass" in name or "right" in name or "majority" in name]
    assert found["prompts_with_signal"] == 0.0


def test_no_right_answer_has_no_length(tmp_path: Path) -> None:
    found = metrics_of(tmp_path, ROUND[2:3], Scoring(VerifierJudge(ExactMatch())))
    assert math.isnan(found["length_right"])
    assert (found["length_wrong"], found["pass_rate"]) == (1.0, 0.0)
    assert "pass_at_1" not in found  # no monitor prompts


def test_new_answers_are_compared_with_the_first_round_s(tmp_path: Path) -> None:
    """2 of 4 answers are right. The first round's answer is wrong: 2 wins and 2 ties; or right: 2 ties, 2 losses."""
    scoring = Scoring(VerifierJudge(ExactMatch()))
    monitor = replace(MONITORS[0], group=b"m" * 16)
    assert metrics_of(tmp_path, [monitor], scoring)["win_rate"] == 0.5  # the first round itself
    for first, rate in (("9", 0.75), ("2", 0.25)):
        compared = with_first_answer(monitor, {monitor.group: Answer(first, "stop", (7,))})
        found = metrics_of(tmp_path, [compared], scoring)
        assert (found["win_rate"], found["monitor_score"]) == (rate, 0.5)
        assert (found["pass_at_1"], found["pass_at_2"], found["majority_at_4"]) == (0.5, 1 - 1 / 6, 1.0)


def test_forms_of_a_value_are_one_vote(tmp_path: Path) -> None:
    """1/2, 0.5 and a fraction are three of the same; two different wrong texts are one vote each."""
    pytest.importorskip("math_verify")
    prompt = replace(PROMPT, row={"answer": "#### 1/2"})
    monitor = Rollout(prompt, answers("#### 0.50", r"so $\frac{1}{2}$", "#### 7", "#### 7.0"), monitor=True)
    scoring = Scoring(WeightedJudge([VerifierJudge(MathAnswer())]))
    (scored,) = scoring.score([monitor])
    assert scored.final_answers == ("1/2", "1/2", "7", "7")
    assert scored.right == (True, True, False, False)
    assert metrics_of(tmp_path, [monitor], scoring)["majority_at_4"] == 0.5  # a tie
    others = ("no idea", "so 1+1", "$x = 2$", r"$\frac{1}{0}$", "$x^2+2x$", "$2x+x^2$", "#### 50%")
    (found,) = scoring.score([replace(monitor, answers=answers(*others))])
    assert found.final_answers == ("no idea", "2", "2", "zoo", "x**2 + 2*x", "x**2 + 2*x", "1/2")


class Words:
    """A verifier of the user's that says itself what an answer comes to."""

    def __call__(self, prompt: Prompt, answer: str) -> bool:
        return self.final_answer(prompt, answer) == str(prompt.row["answer"])

    def final_answer(self, prompt: Prompt, answer: str) -> str:
        if not answer:
            raise RuntimeError("nothing said")
        return answer.split()[-1]


def test_a_verifier_of_the_user_s_says_what_an_answer_comes_to() -> None:
    monitor = Rollout(PROMPT, answers("it is 2", "2", "or 3", "4 "), monitor=True)
    (scored,) = Scoring(VerifierJudge(Words())).score([monitor])
    assert scored.final_answers == ("2", "2", "3", "4")
    (trained,) = Scoring(VerifierJudge(Words())).score([replace(monitor, monitor=False)])
    assert trained.final_answers == ()  # no majority is counted
    with pytest.raises(ValueError, match=r"f:1: Words failed \(nothing said\)"):
        VerifierJudge(Words()).final_answer(PROMPT, "")


def test_a_judge_of_the_user_s_that_fails_to_find_the_final_answer() -> None:
    class Mine:
        right_from = 1.0

        def score(self, prompts: Any, answers: Any) -> Any:
            return [[1.0] * len(texts) for texts in answers]

        def final_answer(self, prompt: Prompt, answer: str) -> str:
            raise KeyError("x")

    with pytest.raises(ValueError, match=r"Mine failed at f:1 \(KeyError: 'x'\); fix the judge and rerun"):
        Scoring(Mine()).score(MONITORS)
