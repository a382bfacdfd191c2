"""Transforms that come with the package."""

from __future__ import annotations

import json
from typing import Any

from lion_lightning.data.formats.sft import Conversation, recognize
from lion_lightning.data.transforms import each_answer, reasoning_in_text, without_language_instructions


def test_each_answer_becomes_the_end_of_a_row_and_those_before_it_are_context() -> None:
    turns: list[dict[str, Any]] = [
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "one", "weight": 1},
        {"from": "human", "value": "b"},
        {"from": "gpt", "value": "two"},
    ]
    rows = list(each_answer({"conversations": turns, "system": "Be kind."}))
    assert [len(row["conversations"]) for row in rows] == [2, 4]
    talks = [recognize(row) for row in rows]
    assert [[turn.weight for turn in talk.messages] for talk in talks if isinstance(talk, Conversation)] == [
        [1.0, 1.0, 1.0],
        [1.0, 1.0, 0.0, 1.0, 1.0],
    ]


def test_what_is_no_conversation_stays_as_it_is() -> None:
    for row in ({"question": "a", "answer": "b"}, {"messages": "text"}, {"messages": ["text"]}):
        assert list(each_answer(row)) == [row]


def test_reasoning_is_written_into_the_text_of_its_answer() -> None:
    said = {"role": "assistant", "content": "b", "reasoning": " hm\n", "train": False}
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "thinking": "hm"}]
    call: dict[str, Any] = {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [{}]}
    row = {"messages": [{"role": "user", "content": "a"}, said, call], "chosen": turns, "prompt": "text", "id": 1}
    assert reasoning_in_text(row) == {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb", "train": False},
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\n", "tool_calls": [{}]},
        ],
        "chosen": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "<think>\nhm\n</think>\n\nb"}],
        "prompt": "text",
        "id": 1,
    }


def test_turns_without_reasoning_stay_as_they_are() -> None:
    turns = [
        {"role": "user", "content": "a", "thinking": "mine"},
        {"role": "assistant", "content": "b", "thinking": ""},
    ]
    assert reasoning_in_text({"messages": turns}) == {"messages": turns}


def test_reasoning_of_ranked_and_labeled_answers_is_written_into_their_text() -> None:
    said = {"role": "assistant", "content": "b", "reasoning_content": "hm"}
    written = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"}
    row = {"question": "a", "answers": ["c", said, [said]], "scores": [1, 2, 3]}
    assert reasoning_in_text(row) == row | {"answers": ["c", written, [written]]}
    labeled = {"question": "a", "response": [said], "label": True}
    assert reasoning_in_text(labeled) == labeled | {"response": [written]}


def test_rows_that_ask_for_a_language_are_left_out() -> None:
    asked = {"func_name": "validate_response_language", "language": "de"}
    for row in (
        {"instruction_id_list": ["punctuation:no_comma", "language:response_language"], "kwargs": [{}, {}]},
        {"ground_truth": json.dumps(asked), "dataset": "ifeval"},
        {"ground_truth": [asked]},
    ):
        assert without_language_instructions(row) == []
    for kept in (
        {"instruction_id_list": ["punctuation:no_comma"], "prompt": "language:response_language"},
        {"ground_truth": '{"func_name": "validate_lowercase"}'},
        {"question": "a", "answer": "b"},
    ):
        assert without_language_instructions(kept) is kept
