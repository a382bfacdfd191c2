"""Judges of a user's that give no rewards: one line that names judge and prompt."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lion_lightning.judges import VerifierJudge, WeightedJudge, score_answers
from lion_lightning.types import Prompt

PROMPTS = [Prompt("a?", (), where="f:1"), Prompt("b?", (), where="f:2")]
ANSWERS = [["x", "y"], ["z"]]


class Mine:
    def __init__(self, scores: Any) -> None:
        self.scores = scores

    def score(self, prompts: Any, answers: Any) -> Any:
        if isinstance(self.scores, Exception):
            raise self.scores
        return self.scores


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[1.0], [1.0]], "Mine returned 1 scores for 2 answers to f:1; return one each"),
        ([[1.0, 2.0], [1.0, 2.0]], "Mine returned 2 scores for 1 answers to f:2; return one each"),
        ([[1.0, 2.0]], "Mine returned scores for 1 of 2 prompts; return a list for each"),
        ([[1.0, math.nan], [1.0]], "Mine returned the score nan for an answer to f:1; return finite numbers"),
        ([[1.0, 2.0], [-math.inf]], "Mine returned the score -inf for an answer to f:2; return finite numbers"),
        ([[1.0, "2"], [1.0]], "Mine returned the score '2' for an answer to f:1; return finite numbers"),
        ([[1.0, None], [1.0]], "Mine returned the score None for an answer to f:1; return finite numbers"),
        ([1.0, 2.0], r"Mine failed \(TypeError: .*\); fix the judge and rerun"),
        (None, r"Mine failed \(TypeError: .*\); fix the judge and rerun"),
        (ValueError("no number: 'x'"), r"Mine failed \(ValueError: no number: 'x'\); fix the judge and rerun"),
        (OSError("no gold.txt"), r"Mine failed \(OSError: no gold.txt\); fix the judge and rerun"),
        (KeyError("city"), r"Mine failed \(KeyError: 'city'\); fix the judge and rerun"),
    ],
)
def test_scores_that_are_no_rewards_are_one_line(scores: Any, message: str) -> None:
    for judge in (Mine(scores), WeightedJudge([Mine(scores)], names=["Mine"])):
        with pytest.raises(ValueError, match=message.replace("Mine failed", r"\w+ failed")) as caught:
            score_answers(judge, PROMPTS, ANSWERS)
        assert "\n" not in str(caught.value)


def test_a_verifier_that_raises_is_named_with_the_prompt() -> None:
    def city(prompt: Prompt, answer: str) -> bool:
        return bool(prompt.row["city"] in answer)

    with pytest.raises(ValueError, match=r"f:1: .*city failed \(KeyError: 'city'\)"):
        score_answers(VerifierJudge(city), PROMPTS, ANSWERS)


def test_scores_of_any_number_type_are_taken() -> None:
    scores = [np.array([1, 2], np.float32), (True,)]
    assert score_answers(Mine(scores), PROMPTS, ANSWERS).scores == [[1.0, 2.0], [1.0]]
