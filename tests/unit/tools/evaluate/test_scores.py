"""Scores, win rates in both orders, and what a judge's habits do to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lion_lightning.judges.base import JudgeScores
from lion_lightning.tools.evaluate.scores import accuracy, categories, gain, right_and_parts, score_all, win_rate
from lion_lightning.types import Answer, Prompt

PROMPTS = [Prompt(f"q{number}", where=f"f.jsonl:{number + 1}", row={"kind": "ab"[number // 2]}) for number in range(4)]


class Scoring:
    """Scores by a function of the text and its place among the answers."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def score(self, prompts: Any, answers: Any) -> Any:
        return [[self.function(text, place) for place, text in enumerate(row)] for row in answers]


def rate(function: Any, ours: list[str], theirs: list[str]) -> dict[str, Any]:
    return win_rate(Scoring(function), PROMPTS[: len(ours)], list(map(Answer, ours)), list(map(Answer, theirs)))


def value(text: str, place: int) -> float:
    return float(text)


# --- win rates


def test_a_judge_that_always_prefers_the_first_answer_gives_one_half() -> None:
    found = rate(lambda text, place: -place, ["1", "2", "3"], ["4", "5", "6"])
    assert found["win_rate"] == {"estimate": 0.5, "low": 0.5, "high": 0.5, "count": 3}
    assert found["disagreements"] == 1.0
    assert found["ties"] == 0.0


def test_two_identical_models_tie_in_everything() -> None:
    found = rate(value, ["1", "2", "3"], ["1", "2", "3"])
    assert found["win_rate"]["estimate"] == 0.5
    assert found["ties"] == 1.0
    assert found["disagreements"] == 0.0


def test_a_model_that_is_always_better_wins_all() -> None:
    assert rate(value, ["2", "3", "4"], ["1", "2", "3"])["win_rate"]["estimate"] == 1.0
    assert rate(value, ["1", "2", "3"], ["2", "3", "4"])["win_rate"]["estimate"] == 0.0


def test_wins_losses_and_ties_are_counted_by_hand() -> None:
    found = rate(value, ["2", "2", "1", "5"], ["1", "1", "1", "9"])
    assert found["win_rate"]["estimate"] == (1 + 1 + 0.5 + 0) / 4
    assert found["win_rate"]["count"] == 4
    assert found["ties"] == 0.25


def test_a_win_in_one_order_and_a_tie_in_the_other_is_three_quarters() -> None:
    found = rate(lambda text, place: float(text == "good" and place == 0), ["good"], ["bad"])
    assert found["win_rate"]["estimate"] == 0.75
    assert found["disagreements"] == 1.0


def test_a_judge_of_long_answers_says_nothing_where_lengths_are_alike() -> None:
    ours, theirs = ["a" * 100, "a" * 9, "a" * 10], ["a", "a" * 10, "a" * 8]  # the last differ by a fifth
    found = rate(lambda text, place: float(len(text) > 50), ours, theirs)
    assert found["win_rate"]["estimate"] == (1 + 0.5 + 0.5) / 3
    assert found["like_length"]["estimate"] == 0.5
    assert found["like_length"]["count"] == 1
    assert found["lengths"] == [119 / 3, 19 / 3]


def test_without_answers_of_like_length_there_is_no_figure_for_them() -> None:
    assert rate(value, ["1"], ["100000"])["like_length"] is None


# --- scores


def test_accuracy_is_the_mean_score_over_all_and_over_each_kind() -> None:
    found = accuracy([1.0, 0.0, 1.0, 1.0], PROMPTS, "kind")
    assert (found["estimate"], found["count"]) == (0.75, 4)
    assert {kind: (one["estimate"], one["count"]) for kind, one in found["by"].items()} == {"a": (0.5, 2), "b": (1, 2)}
    assert (found["by"]["a"]["low"], found["by"]["a"]["high"]) == (0.0, 1.0)
    assert accuracy([1.0, 0.0, 1.0, 1.0], PROMPTS)["by"] == {}


def test_a_missing_column_is_one_line_that_names_the_place() -> None:
    other = Prompt("q", where="f.jsonl:9", row={"level": 1, "answer": "x"})
    with pytest.raises(ValueError, match=r"^f.jsonl:9: `by` names the column 'kind', but the row has level, answer$"):
        categories([*PROMPTS, other], "kind")


def test_the_gain_is_paired() -> None:
    theirs = [0.0, 10.0, 20.0, 30.0]  # a spread that would drown the difference
    assert gain([one + 0.5 for one in theirs], theirs) == (0.5, 0.5, 0.5)
    assert gain([1.0, 0.0], [0.0, 0.0])[0] == 0.5


def test_no_number_is_one_line_that_names_the_judge_and_the_place() -> None:
    with pytest.raises(ValueError, match=r"^Scoring returned the score nan for an answer to f.jsonl:1; return finite"):
        score_all(Scoring(lambda text, place: float("nan")), PROMPTS[:1], [[Answer("a")]])


class Loading(Scoring):
    """Holds a model."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self.calls: list[str] = []

    def open(self, device: torch.device) -> None:
        self.calls.append("open")

    def close(self) -> None:
        self.calls.append("close")


def test_a_judge_that_holds_a_model_loads_it_once_for_both_orders() -> None:
    judge = Loading(value)
    win_rate(judge, PROMPTS[:1], [Answer("1")], [Answer("2")])
    assert judge.calls == ["open", "close"]


def test_a_judge_that_fails_is_closed() -> None:
    judge = Loading(value)
    with pytest.raises(ValueError, match="could not convert"):
        score_all(judge, PROMPTS[:1], [[Answer("no number")]])
    assert judge.calls == ["open", "close"]


def test_a_combined_judge_tells_the_share_of_right_answers_and_the_mean_of_each_part() -> None:
    nan = float("nan")
    judged = JudgeScores(
        [[0.75], [0.25]], {"right": [[1.0], [0.0]], "form": [[0.5], [nan]], "none": [[nan], [nan]]}, [[True], [False]]
    )
    found = right_and_parts(judged)
    assert (found["right"]["estimate"], found["right"]["count"]) == (0.5, 2)
    assert {name: (one["estimate"], one["count"]) for name, one in found["parts"].items()} == {
        "right": (0.5, 2),
        "form": (0.5, 1),  # the answer that it did not rate is left out
    }


def test_of_a_verifier_alone_the_score_says_it_all() -> None:
    assert right_and_parts(JudgeScores([[1.0], [0.0]], {"v": [[1.0], [0.0]]}, [[True], [False]])) == {}
    assert right_and_parts(JudgeScores([[0.4]], {"v": [[0.4]]})) == {}
