"""Unpaired rows: one answer with a label, however it is written."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from lion_lightning.data.formats.answers.labeled import recognize_labeled
from lion_lightning.data.formats.pairing import PromptAnswer, PromptAnswers
from lion_lightning.data.formats.sft import Completion, Conversation, recognize
from lion_lightning.data.formats.turns import Message
from lion_lightning.data.reports.row_messages import RowMessages, collect_messages, collect_row_messages
from lion_lightning.data.sources.readers import Row
from lion_lightning.data.sources.source import Source
from tests.unit.data.encoding.test_chat import SHARED
from tests.unit.data.formats.answers.test_preference import answer, chat, turns

ASKED = {"question": "Hi", "answer": "Hello"}
TALK = chat("Hi", "Hello")


def labeled(example: PromptAnswer, label: float) -> list[PromptAnswers]:
    return [PromptAnswers((example,), (label,))]


FORMS: dict[str, tuple[dict[str, Any], PromptAnswer]] = {
    "TRL's unpaired form of messages": ({"prompt": turns("Hi"), "completion": answer("Hello")}, TALK),
    "TRL's unpaired form of texts": (
        {"prompt": "The sky is", "completion": " blue."},
        Completion("The sky is", " blue."),
    ),
    "a text that answers messages": ({"prompt": turns("Hi"), "completion": "Hello"}, TALK),
    "a response": ({"prompt": turns("Hi"), "response": "Hello"}, TALK),
    "a question": (ASKED, TALK),
    "a question with a response": ({"question": "Hi", "response": "Hello"}, TALK),
    "an instruction with its input": (
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        chat("Add.\n\n1 2", "3"),
    ),
    "messages and the answer": ({"messages": turns("Hi"), "completion": "Hello"}, TALK),
    "messages that hold the answer": ({"messages": turns("Hi", "Hello")}, TALK),
    "an answer behind earlier ones": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, *turns("c", "d")]},
        chat("a", "b", "c", "d", prompt_turns=3),
    ),
    "a system column": (ASKED | {"system": "Be kind."}, chat("Hi", "Hello", prompt_turns=2, system="Be kind.")),
    "a completion that repeats the prompt": (
        {"prompt": turns("a", "b", "c"), "completion": turns("a", "b", "c", "d")},
        chat("a", "b", "c", "d", prompt_turns=3),
    ),
}


@pytest.mark.parametrize(("row", "example"), FORMS.values(), ids=FORMS)
def test_each_form_has_the_label_as_its_value(row: dict[str, Any], example: PromptAnswer) -> None:
    assert recognize_labeled(row | {"label": True}) == labeled(example, 1.0)
    assert recognize_labeled(row | {"label": 0}) == labeled(example, 0.0)


@pytest.mark.parametrize(
    ("written", "label"),
    [
        ({"label": "true"}, 1.0),  # as CSV files have it
        ({"label": "-1"}, 0.0),
        ({"label": 1.0}, 1.0),
        ({"label": "rejected"}, 0.0),
        ({"thumbs_up": True}, 1.0),
        ({"thumbs_up": 0}, 0.0),
        ({"thumbsUp": False, "id": 7}, 0.0),
        ({"feedback": "up"}, 1.0),
        ({"feedback": "👎🏽"}, 0.0),
        ({"user_feedback": "Thumbs down"}, 0.0),
        ({"is_correct": False}, 0.0),
        ({"rating": "good"}, 1.0),
        ({"rating": False}, 0.0),
        ({"liked": True, "feedback": "I asked it twice, and it knew at once."}, 1.0),  # words that are no label
        ({"label": True, "quality": 4}, 1.0),
    ],
)
def test_labels_are_found_by_name_and_read_in_words_and_numbers(written: dict[str, Any], label: float) -> None:
    assert recognize_labeled(ASKED | written) == labeled(TALK, label)


def noted(row: dict[str, Any]) -> tuple[list[PromptAnswers], RowMessages]:
    with collect_messages() as messages, collect_row_messages():
        return recognize_labeled(row), messages


def test_a_yes_to_a_fault_is_no_and_said() -> None:
    for name, value, label in (("thumbs_down", True, 0.0), ("is_toxic", 0, 1.0), ("harmful", "no", 1.0)):
        made, messages = noted(ASKED | {name: value})
        assert made == labeled(TALK, label)
        (line,) = messages["changed"]
        assert line.startswith(f"{name} is read the other way round")
        assert list(messages["form"]) == [f"question + answer + label | question | answer | {name} as label"]


def test_columns_say_which_number_is_a_label() -> None:
    row = ASKED | {"rating": -1, "vote": 1}
    assert recognize_labeled(row, {"label": "rating"}) == labeled(TALK, 0.0)
    assert recognize_labeled(row) == labeled(TALK, 1.0)  # a rating has no known scale, a vote has
    named = {"question": "q", "answer": "a", "label": "ok"}
    assert recognize_labeled({"q": "Hi", "a": "Hello", "ok": "👍"}, named) == labeled(TALK, 1.0)


def test_preference_rows_are_taken_apart_into_one_tree() -> None:
    apart = [PromptAnswers((chat("Hi", "good"), chat("Hi", "bad")), (1.0, 0.0))]
    pair = {"prompt": turns("Hi"), "chosen": answer("good"), "rejected": answer("bad")}
    assert recognize_labeled(pair) == apart
    assert recognize_labeled(pair | {"score_chosen": 1, "score_rejected": 9, "liked": True}) == apart
    assert recognize_labeled({"chosen": turns("Hi", "good"), "rejected": turns("Hi", "bad")}) == apart
    assert recognize_labeled({"chosen": "", "rejected": "b"}) == []  # left out, as among pairs


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (ASKED, "question [+] answer [+] label lacks label; .*transform"),
        (ASKED | {"label": None}, r"label \(null\).* lacks label"),
        (ASKED | {"label": 0.5}, "^label is 0.5, which is neither of two labels; write true or false, 1 or 0"),
        (ASKED | {"label": 2}, "^label is 2, which is neither"),
        (ASKED | {"label": -3}, "^label is -3, which is neither"),
        (ASKED | {"label": math.nan}, "^label is nan, which is neither"),
        (ASKED | {"label": "maths"}, "^label is 'maths', which is neither"),
        (ASKED | {"label": [1]}, r"^label is \[1\], which is neither"),
        (ASKED | {"label": "x" * 10**6}, "^label is 'x{39}, which is neither"),
        (ASKED | {"rating": 1}, r"^rating grades in numbers, .* `columns: \{label: rating\}`, else .*transform"),
        (ASKED | {"liked": True, "correct": 0}, "^each of liked, correct may be the label; say with `columns"),
        (ASKED | {"label": True, "correct": 0}, "the column 'correct' holds the mark of an answer that is not wanted"),
        ({"messages": answer("Hello"), "label": 1}, "no message stands before the answer"),
        ({"messages": turns("Hi"), "label": 1}, "no assistant turn to learn from"),
        ({"prompt": turns("Hi"), "completion": turns("b"), "label": 1}, "completion holds, after the prompt"),
        (
            {"question": "Hi", "answers": ["a", "b"], "scores": [1, 2]},
            "^the row has ranked answers, .*GroupDataModule .*GroupModule.*PreferenceDataModule .*DPOModule",
        ),
        (
            {"instruction": "Hi", "completions": [{"response": "a", "overall_score": 1}]},
            "^the row has ranked answers, and their scores are no labels",
        ),
    ],
)
def test_a_bad_row_gets_one_line_that_says_what_is_wrong(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        recognize_labeled(row)
    assert "\n" not in str(caught.value)


def test_a_source_makes_chats_of_plain_text_and_puts_a_system_turn_before_them() -> None:
    source = Source("a", format="chat", system="Be kind.", columns={"completion": "reply"})
    row = Row("a:1", {"prompt": "Hi", "reply": "Hello", "label": False})
    system = chat("Hi", "Hello", prompt_turns=2, system="Be kind.")
    assert source.examples(row, recognize_labeled) == labeled(system, 0.0)
    dialogue = Row("a:1", {"text": "\n\nHuman: Hi\n\nAssistant: Hello", "label": True})
    assert Source("a", format="chat").examples(dialogue, recognize_labeled) == labeled(TALK, 1.0)


def test_tools_and_calls_go_along() -> None:
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}]}
    row = {"messages": [*turns("Hi"), call], "tools": '[{"type": "function"}]', "label": True}
    ((example,),) = [tree.answers for tree in recognize_labeled(row)]
    assert isinstance(example, Conversation)
    assert (example.tools, example.prompt_turns) == (({"type": "function"},), 1)
    assert example.messages[1] == Message("assistant", "", {"tool_calls": call["tool_calls"]})


def test_other_data_modules_name_the_one_that_takes_labels() -> None:
    with pytest.raises(ValueError, match=r"UnpairedDataModule takes single answers with labels \(for KTOModule\)"):
        recognize(ASKED | {"label": False})


def from_scores(row: dict[str, Any]) -> Any:
    for said, score in zip(row["answers"], row["scores"], strict=True):
        yield {"question": row["question"], "answer": said, "label": score >= 4}


def test_a_transform_makes_labels_of_scores() -> None:
    source = Source("a", transform=from_scores)
    row = Row("a:1", {"question": "Hi", "answers": ["Hello", "What?"], "scores": [5, 2]})
    assert source.examples(row, recognize_labeled) == [*labeled(TALK, 1.0), *labeled(chat("Hi", "What?"), 0.0)]


CASES = SHARED / "cases"


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the real cases in ../shared/cases")
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("meaning-changing-columns/label.jsonl", [(1.0,), (0.0,)]),
        ("pair-as-json-text/rows.jsonl", [(1.0, 0.0)]),
        ("prompt-beside-pair-lost/rows.jsonl", [(1.0, 0.0), (1.0, 0.0)]),
    ],
)
def test_rows_that_were_reported_are_labeled(name: str, values: list[tuple[float, ...]]) -> None:
    rows = [json.loads(line) for line in (CASES / name).read_text("utf-8").splitlines()]
    assert [tree.values for row in rows for tree in recognize_labeled(row)] == values
