"""Rows for group objectives: all answers of a prompt with their scores."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lion_lightning.data.formats.answers.groups import recognize_groups
from lion_lightning.data.formats.pairing import PromptAnswers
from lion_lightning.data.formats.sft import recognize
from tests.unit.data.formats.answers.test_preference import answer, chat, turns

RANKED = {"question": "Hi", "answers": ["b", "a", "c"], "scores": [2, 3, 1]}
GROUP = [PromptAnswers((chat("Hi", "b"), chat("Hi", "a"), chat("Hi", "c")), (2.0, 3.0, 1.0))]


def test_ranked_answers_stay_as_they_are() -> None:
    assert recognize_groups(RANKED) == GROUP
    assert recognize_groups({"prompt": turns("Hi"), "replies": ["b", "a", "c"], "scores": "[2, 3, 1]"}) == GROUP
    named = {"question": "Hi", "said": ["b", "a", "c"], "won": [2, 3, 1]}
    assert recognize_groups(named, {"answers": "said", "scores": "won"}) == GROUP
    assert recognize_groups(RANKED | {"chosen": "a", "rejected": "c"}) == GROUP  # of several forms the longer list


def test_the_best_rank_is_the_lowest() -> None:
    row = {"question": "Hi", "answers": ["b", "a", "c"], "ranks": [2, 1, 3]}
    assert recognize_groups(row) == [GROUP[0]._replace(values=(-2.0, -1.0, -3.0))]


def test_a_pair_is_a_group_of_two() -> None:
    pair = {"question": "Hi", "chosen": "b", "rejected": "a"}
    both = (chat("Hi", "b"), chat("Hi", "a"))
    assert recognize_groups(pair) == [PromptAnswers(both, (1.0, 0.0))]
    assert recognize_groups(pair | {"score_chosen": 2, "score_rejected": 3}) == [PromptAnswers(both, (2.0, 3.0))]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (RANKED | {"answers": ["a"], "scores": [1]}, "^a group needs two answers, and answers has 1; skip the row"),
        (RANKED | {"answers": [], "scores": []}, "^answers is empty; skip the row"),
        (RANKED | {"scores": [1, 2]}, "^answers has 3 entries and scores 2; give each answer its score"),
        (RANKED | {"scores": [1, math.nan, 2]}, r"^scores\[1\] is nan, not a finite number; skip the row"),
        (RANKED | {"scores": [1, "1e999", 2]}, r"^scores\[1\] is inf, not a finite number"),
        (RANKED | {"scores": [1, None, 2]}, r"^scores\[1\] is NoneType, not a number"),
        ({"question": "Hi", "answers": ["a", "b"]}, "question [+] answers [+] scores lacks scores"),
        ({"question": "Hi", "answers": ["a", "b"], "ranks": [1, "x"]}, r"^ranks\[1\] is 'x', not a number"),
        (RANKED | {"answers": ["a", turns("b"), "c"]}, r"answers\[1\] holds, after the prompt, the turns user"),
        (
            {"prompt": "Hi", "answers": ["a", answer("b")], "scores": [1, 2]},
            r"^answers\[0\] is text and answers\[1\] is",
        ),
        (
            {"prompt": "a", "completion": "b", "label": True},
            "^the row has one answer, and a group needs two: .*UnpairedDataModule .*KTOModule.*SFTDataModule",
        ),
        ({"messages": turns("a", "b")}, "^the row has one answer, and a group needs two"),
    ],
)
def test_a_bad_row_gets_one_line_that_says_what_is_wrong(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        recognize_groups(row)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scores", ["scores", "ranks"])
def test_documents_are_not_made_of_them(scores: str) -> None:
    with pytest.raises(ValueError, match=r"^the row has ranked answers: PreferenceDataModule takes it .*GroupModule"):
        recognize({"question": "Hi", "answers": ["a", "b"], scores: [1, 2]})
    with pytest.raises(ValueError, match=r"^the row has a pair of answers: PreferenceDataModule takes it .*DPOModule"):
        recognize({"prompt": "Hi", "chosen": "a", "rejected": "b"})
    assert recognize({"prompt": "Hi", "chosen": "a", "rejected": "b"}, {"completion": "chosen"}) == ("Hi", "a")
