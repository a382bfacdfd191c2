"""Ranked answers as common sets have them: under other names, and as objects with their scores."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lion_lightning.data.formats.answers.groups import recognize_groups
from lion_lightning.data.formats.answers.preference import recognize_preferences
from lion_lightning.data.formats.pairing import AllPairs, BestWorst, PromptAnswers
from lion_lightning.data.formats.sft import Completion
from lion_lightning.data.reports.row_messages import RowMessages, collect_messages, collect_row_messages
from lion_lightning.data.sources.readers import Row
from lion_lightning.data.sources.source import Source
from lion_lightning.rollouts.prompts.forms import recognize_prompt
from tests.unit.data.formats.answers.test_preference import chat, turns
from tests.unit.data.pairs import pair_of

BLUE, SEVEN = chat("Name a color.", "Blue."), chat("Name a color.", "Seven.")


def completion(response: str, score: Any) -> dict[str, Any]:
    """An entry of UltraFeedback's ``completions``, with the keys that it has."""
    return {
        "annotations": {"helpfulness": {"Rating": "4", "Rationale": "It is a color."}},
        "custom_system_prompt": "Be honest.",
        "model": "alpaca-7b",
        "principle": "honesty",
        "response": response,
        "critique": "Short.",
        "fine-grained_score": 4.25,
        "overall_score": score,
    }


ULTRAFEEDBACK = {
    "source": "evol_instruct",
    "instruction": "Name a color.",
    "models": ["alpaca-7b", "bard"],
    "completions": [completion("Seven.", 2.0), completion("Blue.", 7.5)],
    "correct_answers": ["None"],
}
HH = "\n\nHuman: Hi\n\nAssistant: "
NECTAR = {
    "prompt": HH,
    "answers": [{"answer": text, "model": "m", "rank": rank} for text, rank in (("a", 2.0), ("b", 1.0), ("c", 3.0))],
    "turns": 1,
    "source": ["lmsys"],
}


def noted(row: Any) -> tuple[list[PromptAnswers], RowMessages]:
    with collect_messages() as messages, collect_row_messages():
        return recognize_groups(row), messages


def test_ultrafeedback_is_read_from_its_completions() -> None:
    made, messages = noted(ULTRAFEEDBACK)
    assert made == [PromptAnswers((SEVEN, BLUE), (2.0, 7.5))]
    assert recognize_preferences(ULTRAFEEDBACK, None, BestWorst()) == [pair_of(BLUE, SEVEN, 7.5, 2.0)]
    assert messages["form"] == Counter(
        ["instruction + answers + scores | instruction | completions as answers | completions.overall_score as scores"]
    )
    unused = {name for name in messages["unused"] if name.startswith("completions.")}
    keys = ("annotations", "custom_system_prompt", "principle", "critique", "fine-grained_score")
    assert unused == {f"completions.{key}" for key in keys}
    as_text = ULTRAFEEDBACK | {"completions": json.dumps(ULTRAFEEDBACK["completions"])}
    assert recognize_groups(as_text) == made


def test_nectar_is_read_from_its_ranks() -> None:
    made, _ = noted(NECTAR)
    assert made == [PromptAnswers(tuple(Completion(HH, text) for text in "abc"), (-2.0, -1.0, -3.0))]
    source = Source("nectar", format="chat")
    assert source.examples(Row("nectar:1", NECTAR), recognize_groups) == [
        PromptAnswers(tuple(chat("Hi", text) for text in "abc"), (-2.0, -1.0, -3.0))
    ]
    best, second = chat("Hi", "b"), chat("Hi", "a")
    (tree,) = source.examples(Row("nectar:1", NECTAR), lambda row, names: recognize_preferences(row, names, AllPairs()))
    assert tree.answers[:2] == (best, second)
    assert recognize_prompt({"question": "Hi", "answers": ["a", "b"], "ranks": [2, 1]}) == best


@pytest.mark.parametrize(
    ("lists", "values"),
    [
        ({"generations": ["Seven.", "Blue."], "ratings": [4, 5.5]}, (4.0, 5.5)),
        ({"responses": ["Seven.", "Blue."], "rewards": [-1.5, 0]}, (-1.5, 0.0)),
        ({"candidates": [[{"role": "assistant", "content": "Seven."}], "Blue."], "rank": [2, 1]}, (-2.0, -1.0)),
        (
            {"replies": [turns("Name a color.", "Seven."), turns("Name a color.", "Blue.")], "scores": [0, 1]},
            (0.0, 1.0),
        ),
        ({"answers": [{"text": "Seven."}, {"text": "Blue."}], "scores": [0, 1]}, (0.0, 1.0)),
        ({"answers": [{"text": "Seven.", "score": 9}, {"text": "Blue.", "score": 8}], "scores": [0, 1]}, (0.0, 1.0)),
        ({"outputs": [{"output": "Seven.", "score": 1, "rank": 2}, {"output": "Blue.", "score": 2}]}, (1.0, 2.0)),
    ],
)
def test_common_names_of_lists(lists: dict[str, Any], values: tuple[float, ...]) -> None:
    assert recognize_groups({"question": "Name a color."} | lists) == [PromptAnswers((SEVEN, BLUE), values)]


def test_lists_beside_a_pair_are_not_looked_at_where_pairs_are_asked_for() -> None:
    row = {"question": "Name a color.", "chosen": "Blue.", "rejected": "Seven."}
    lists = {"completions": [{"response": "Red.", "reasoning": "hm", "score": 1}], "generations": ["a"], "ratings": [1]}
    assert recognize_preferences(row | lists, None, BestWorst()) == [pair_of(BLUE, SEVEN)]


def test_columns_name_the_list_of_objects_beside_a_pair() -> None:
    row = {"question": "Name a color.", "chosen": "Red.", "rejected": "Two.", "said": [{"text": "Blue.", "score": 1}]}
    row["said"] = [*row["said"], {"text": "Seven.", "score": 0}]
    assert recognize_preferences(row, {"answers": "said"}, BestWorst()) == [pair_of(BLUE, SEVEN, 1.0, 0.0)]


def test_two_lists_that_may_be_the_answers_are_none() -> None:
    row = {"question": "Hi", "responses": ["a", "b"], "candidates": ["a", "b"], "scores": [1, 2]}
    with pytest.raises(ValueError, match="the row's keys are question, responses, candidates, scores"):
        recognize_groups(row)
    assert len(recognize_groups(row, {"answers": "candidates"})) == 1


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"score": 1, "reward": 2}, "^the entries of completions have score and reward; keep the one that ranks"),
        ({"score": 1, "reasoning": "hm"}, "^completions.reasoning holds a part of the answer, and answers are texts"),
        ({"score": 1, "image": "a.png"}, "^completions.image holds an image or sound"),
        ({"score": None}, "lacks scores"),
        ({"answer": "c"}, "lacks scores"),  # two texts
    ],
)
def test_entries_that_say_two_things_are_refused(entry: dict[str, Any], complaint: str) -> None:
    row = {"question": "Hi", "completions": [{"response": "a"} | entry, {"response": "b"} | entry]}
    with pytest.raises(ValueError, match=complaint):
        recognize_groups(row)


def test_an_entry_without_a_score_or_text_is_named() -> None:
    scored = [{"response": "a", "score": 1}, {"response": "b"}]
    with pytest.raises(ValueError, match=r"^scores\[1\] is NoneType, not a number"):
        recognize_groups({"question": "Hi", "completions": scored})
    with pytest.raises(ValueError, match=r"^answers\[1\] is NoneType, not a list of messages"):
        recognize_groups({"question": "Hi", "completions": [scored[0], {"score": 2}]})


def test_the_docs_make_pairs_of_answers_in_columns_of_their_own() -> None:
    docs = (Path(__file__).parents[5] / "docs/data.md").read_text("utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", docs, re.DOTALL) if "better_response_id" in block]
    made: dict[str, Any] = {}
    exec(code, made)
    row = {"prompt": "Name a color.", "response_0": "Seven.", "response_1": "Blue.", "better_response_id": 1}
    assert recognize_preferences(made["from_safe_rlhf"](row), None, BestWorst()) == [pair_of(BLUE, SEVEN)]
