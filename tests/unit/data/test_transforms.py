"""Transforms that come with the package."""

from __future__ import annotations

from typing import Any

from lion_lightning.data.formats.sft import Conversation, recognize
from lion_lightning.data.transforms import each_answer


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
