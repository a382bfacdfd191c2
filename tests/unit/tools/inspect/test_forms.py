"""`lion inspect` says in which form rows were read, and why not in another."""

from __future__ import annotations

from typing import Any

import pytest

from lion_lightning.data.formats.answers.groups import recognize_groups
from lion_lightning.data.formats.answers.labeled import recognize_labeled
from lion_lightning.data.formats.answers.preference import recognize_preferences
from lion_lightning.data.formats.pairing import BestWorst
from lion_lightning.data.formats.sft import recognize
from lion_lightning.data.reports.row_messages import RowMessages, collect_messages, collect_row_messages
from lion_lightning.rollouts.prompts.forms import recognize_prompt
from lion_lightning.tools.inspect.forms import forms_block

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def read_as(read: Any, noun: str, *rows: dict[str, Any]) -> list[str]:
    with collect_messages() as messages:
        for row in rows:
            with collect_row_messages():
                read(row)
    return forms_block("mine", messages, noun).splitlines()


def test_the_form_the_columns_and_the_nearest_other_form() -> None:
    rows: list[dict[str, Any]] = [
        {"dialog": TALK, "system_prompt": "s", "id": 1},
        {"dialog": TALK},
        {"text": "a", "id": 3},
    ]
    assert read_as(recognize, "documents", *rows) == [
        "mine is read as",
        "  form: messages (2 rows), text (1 rows)",
        "  columns used: dialog as messages (2 of 3 rows), system_prompt as system (1 of 3 rows), text (1 of 3 rows)",
        "  columns not used: id (2 of 3 rows)",
        "  not read as: text fits too, and messages comes before it; `columns` decides otherwise",
    ]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"prompt": "a", "completion": "b"}, "prompt + response lacks response"),
        ({"question": "a", "answer": "b", "output": "c"}, "instruction + output lacks instruction"),
        ({"text": "a"}, "any other form: none of their other columns is there"),
    ],
)
def test_what_the_nearest_form_lacks(row: dict[str, Any], line: str) -> None:
    assert read_as(recognize, "documents", row)[-1] == f"  not read as: {line}"


def test_pairs_and_prompts_have_forms_of_their_own() -> None:
    pair = {"question": "a", "chosen": "b", "rejected": "c", "split": "x"}

    def pairs(row: Any) -> Any:
        return recognize_preferences(row, None, BestWorst())

    assert read_as(pairs, "pairs", pair)[1:] == [
        "  form: question + chosen + rejected (1 rows)",
        "  columns used: chosen, question, rejected",
        "  columns not used: split",
        "  not read as: chosen + rejected fits too, and question + chosen + rejected comes before it; "
        "`columns` decides otherwise",
    ]
    asked = read_as(recognize_prompt, "prompts", {"question": "a", "answer": "b", "level": 3})
    assert asked[1:] == [
        "  form: question + answer (1 rows)",
        "  columns used: answer, question",
        "  columns not used: none",
        "  columns for judges: level",
        "  not read as: question fits too, and question + answer comes before it; `columns` decides otherwise",
    ]
    assert asked[4] == "  columns for judges: level"


def test_labels_and_groups_have_forms_of_their_own() -> None:
    labeled = {"question": "a", "answer": "b", "thumbs_up": True, "id": 7}
    assert read_as(recognize_labeled, "answers", labeled)[1:] == [
        "  form: question + answer + label (1 rows)",
        "  columns used: answer, question, thumbs_up as label",
        "  columns not used: id",
        "  not read as: question + response + label lacks response",
    ]
    pair = {"question": "a", "chosen": "b", "rejected": "c"}
    ranked = {
        "instruction": "a",
        "completions": [{"response": word, "overall_score": 1, "critique": "-"} for word in "bc"],
    }
    assert read_as(recognize_groups, "groups", ranked, pair)[1:] == [
        "  form: instruction + answers + scores (1 rows), question + chosen + rejected (1 rows)",
        "  columns used: chosen (1 of 2 rows), completions as answers (1 of 2 rows), completions.overall_score as "
        "scores (1 of 2 rows), instruction (1 of 2 rows), question (1 of 2 rows), rejected (1 of 2 rows)",
        "  columns not used: completions.critique (1 of 2 rows)",
        "  not read as: question + answers + scores fits too, and instruction + answers + scores comes before it; "
        "`columns` decides otherwise",
    ]


def test_a_source_without_a_row_that_could_be_read() -> None:
    assert forms_block("mine", RowMessages(), "documents") == "mine is read as\n  nothing: no row could be read"
