from __future__ import annotations

from typing import Any

import pytest

from lion_lightning.data.formats.sft import Completion, Conversation, Text, recognize
from lion_lightning.data.formats.turns import Message

HELLO = Conversation((Message("user", "Hi"), Message("assistant", "Hello")))


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}, HELLO),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "id": "7"}, HELLO),
        ({"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}, HELLO),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, HELLO),
        ({"question": "Hi", "answer": "Hello"}, HELLO),
        ({"prompt": "Hi", "completion": " Hello"}, Completion("Hi", " Hello")),
        ({"text": "Once upon a time"}, Text("Once upon a time")),
    ],
)
def test_each_known_form_is_recognized(row: dict[str, Any], example: object) -> None:
    assert recognize(row) == example


def test_alpaca_input_follows_the_instruction_after_an_empty_line() -> None:
    example = recognize({"instruction": "Add.", "input": "1 + 2", "output": "3"})
    assert example == Conversation((Message("user", "Add.\n\n1 + 2"), Message("assistant", "3")))


def test_conversational_prompt_and_completion_keep_where_the_prompt_ends() -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    example = recognize({"prompt": turns[:1], "completion": turns[1:]})
    assert isinstance(example, Conversation)
    assert (len(example.messages), example.prompt_turns) == (4, 1)


def test_columns_rename_the_rows_own_keys() -> None:
    row = {"question": "2 + 2?", "answer": "4"}
    assert recognize(row, {"prompt": "question", "completion": "answer"}) == Completion("2 + 2?", "4")
    assert recognize({"query": "Hi", "response": "Hello"}, {"question": "query", "answer": "response"}) == HELLO


def test_named_columns_win_over_a_form_that_the_row_also_has() -> None:
    row = {"messages": [{"role": "user", "content": "other"}], "q": "Hi", "a": "Hello"}
    assert recognize(row, {"question": "q", "answer": "a"}) == HELLO


def test_a_renamed_alpaca_output_does_not_lose_the_input() -> None:
    example = recognize({"instruction": "Add.", "input": "1 + 2", "answer": "3"}, {"output": "answer"})
    assert isinstance(example, Conversation)
    assert example.messages[0].content == "Add.\n\n1 + 2"


def test_messages_win_over_a_plain_prompt_column() -> None:
    row = {"prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    assert recognize(row) == HELLO


def test_null_columns_count_as_absent() -> None:
    assert recognize({"messages": None, "text": "a"}) == Text("a")


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": parts}]}
    assert recognize(row) == HELLO


def test_a_system_column_beside_sharegpt_turns_comes_first() -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    example = recognize({"system": "Be kind.", "conversations": turns})
    assert example == Conversation((Message("system", "Be kind."), *HELLO.messages))


def test_an_answer_may_open_a_conversation_cut_out_of_a_longer_one() -> None:
    turns = [{"from": "gpt", "value": "Hello"}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "So?"}]
    example = recognize({"conversations": turns})
    assert isinstance(example, Conversation)
    assert [message.role for message in example.messages] == ["assistant", "user", "assistant"]


def test_tool_calls_and_their_results_are_kept() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    row = {
        "messages": [
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "2", "name": "add"},
            {"role": "assistant", "content": "It is 2.", "name": None},
        ],
        "tools": '[{"type": "function"}]',
    }
    assert recognize(row) == Conversation(
        (
            Message("user", "1 + 1?"),
            Message("assistant", "", {"tool_calls": [call]}),
            Message("tool", "2", {"name": "add"}),
            Message("assistant", "It is 2."),
        ),
        tools=({"type": "function"},),
    )


def said(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"instances": [], "id": 1}, "unknown format: the row's keys are instances, id; known: messages; .*transform"),
        ({"instruction": "a", "output": None}, r"keys are instruction, output \(null\)"),
        ({}, "keys are none"),
        ({"messages": []}, "messages is empty"),
        ({"messages": "Hi"}, "messages is str, not a list"),
        ({"messages": ["Hi"]}, r"messages\[0\] is str"),
        (said(("user", "a"), ("assistant", "")), r"messages\[1\] \(assistant\) is empty"),
        (said(("user", "a"), ("assistant", " \n")), r"messages\[1\] \(assistant\) is empty"),
        (said(("user", None), ("assistant", "b")), r"messages\[0\] \(user\) has no content"),
        (said(("user", 3), ("assistant", "b")), r"messages\[0\] \(user\) is int, not text"),
        (said(("user", [{"type": "image_url"}]), ("assistant", "b")), "content part of the kind 'image_url'"),
        (said(("narrator", "a"), ("assistant", "b")), "has the role 'narrator'; known roles"),
        (said(("user", "a"), ("user", "b"), ("assistant", "c")), "out of order: message 1 is user after user"),
        (said(("user", "a"), ("assistant", "b"), ("assistant", "c")), "message 2 is assistant after assistant"),
        (said(("user", "a"), ("system", "b"), ("assistant", "c")), "message 1 is system after user"),
        (said(("tool", "a"), ("assistant", "b")), "message 0 is tool and first"),
        (said(("user", "a")), "no assistant turn"),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": "b"}, "differ in kind"),
        ({"prompt": said(("user", "a"), ("assistant", "b"))["messages"], "completion": []}, "completion is empty"),
        ({"prompt": "a", "completion": ""}, "completion is empty"),
        ({"text": 3}, "text is int, not text"),
        ({"messages": [], "tools": "[{"}, "messages is empty|tools is not valid JSON"),
    ],
)
def test_a_bad_row_gets_one_line_that_says_what_is_wrong(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        recognize(row)
    assert "\n" not in str(caught.value)


def test_a_column_that_the_row_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="columns maps prompt to 'query', but the row only has the keys text"):
        recognize({"text": "a"}, {"prompt": "query"})


def test_columns_the_other_way_round_are_told_how_to_be_written() -> None:
    with pytest.raises(ValueError, match="other way round: write question: query, the row's own name last"):
        recognize({"query": "a", "reply": "b"}, {"query": "question", "reply": "answer"})


def test_a_misspelt_known_column_is_named() -> None:
    with pytest.raises(ValueError, match="unknown column 'promt'"):
        recognize({"text": "a"}, {"promt": "text"})
