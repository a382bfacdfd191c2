"""What a template leaves out is noticed, and what it only spells otherwise is not taken for left out."""

from __future__ import annotations

from typing import Any

import pytest

from lion_lightning.data.encoding.template_check import CHANGED, missing_function, missing_of_answer, missing_turn
from lion_lightning.data.formats.turns import Message
from lion_lightning.data.reports.row_messages import collect_messages


def answer(content: str = "", arguments: dict[str, Any] | None = None, **extra: str) -> Message:
    calls = [{"type": "function", "function": {"name": "add", "arguments": arguments}}] if arguments is not None else []
    return Message("assistant", content, {**extra, **({"tool_calls": calls} if calls else {})} or None)


@pytest.mark.parametrize(
    ("turn", "shown"),
    [
        (answer("  four \n"), "<s>four</s>"),
        (answer("a\n\nb  c"), "a b c"),
        (answer('say "é"\n'), '{"text": "say \\"é\\"\\n"}'),
        (answer('say "é"\n'), '{"text": "say \\"\\u00e9\\"\\n"}'),
        (answer("1 < 2"), "<m>1 &lt; 2</m>"),
        (answer("<think>\nhm\n</think>\n\nfour"), "<|channel|>hm<|final|>four"),
        (answer("four", thinking="two and two make four"), "[two and two make four]four"),
        (answer("", {"a": 1, "b": [True, None, 2.5]}), "add(a=1, b=[True, None, 2.5])"),
        (answer("", {"a": {"b": "x y"}, "c": False}), '{"name": "add", "arguments": {"a": {"b": "x y"}, "c": false}}'),
    ],
)
def test_other_spellings_are_no_loss(turn: Message, shown: str) -> None:
    assert missing_of_answer(turn, shown) == ""


@pytest.mark.parametrize(
    ("turn", "shown", "missing"),
    [
        (answer("four"), "<s></s>", "content ('four')"),
        (answer("<think>hm</think>four"), "four</s>", "content ('hm')"),
        (answer("four", reasoning="four"), "four</s>", "reasoning ('four')"),  # each needs a place of its own
        (answer("four", thinking="two and two make four"), "four</s>", "thinking ('two and two make four')"),
        (answer("Let me look.", {"a": "b"}), "add(a=b)", "content ('Let me look.')"),
        (answer("add", {"a": "b"}), "add", "tool_calls ('add')"),
        (answer("", {"city": "Oslo"}), "add(city)", "tool_calls ('Oslo')"),
        (answer("", {"count": 17}), "add(count)", "tool_calls ('17')"),
    ],
)
def test_what_is_not_there_is_named(turn: Message, shown: str, missing: str) -> None:
    assert missing_of_answer(turn, shown) == missing


def test_the_second_of_two_equal_calls_needs_a_place_of_its_own() -> None:
    turn = answer("", {"city": "Oslo"})
    twice = Message("assistant", "", {"tool_calls": (turn.extra or {})["tool_calls"] * 2})
    assert missing_of_answer(twice, "add(city=Oslo)") != ""
    assert missing_of_answer(twice, "add(city=Oslo), add(city=Oslo)") == ""


TALK = (
    Message("user", "1+2?"),
    Message("assistant", "hm</think>Wait"),
    Message("tool", "3"),
    Message("assistant", "It is 3."),
)


def test_turns_may_stand_in_any_order_but_each_in_its_own_place() -> None:
    assert missing_turn(TALK, "1+2? Wait [3] It is 3.") == ""
    assert missing_turn(TALK, "It is 3. 3 Wait 1+2?") == ""
    assert missing_turn(TALK, "1+2? Wait It is 3.") == "content of message 2 (tool)"
    assert missing_turn(TALK, "[3] Wait It is 3.") == "content of message 0 (user)"
    assert missing_turn((Message("user", "yes"),) * 3, "yes yes") == "content of message 2 (user)"


def test_a_switch_that_a_template_takes_out_of_a_turn_is_warned_of() -> None:
    with collect_messages() as notes:
        assert missing_turn((Message("user", "What is two and two? /no_think"),), "What is two and two?") == ""
    assert notes["warning"] == {CHANGED: 1}


def test_a_function_is_named_as_often_as_it_is_defined_and_called() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("add", "subtract")]
    assert missing_function((), tools, "add, subtract") == missing_function((), None, "") == ""
    assert missing_function((), tools, "add") == "tools ('subtract')"
    assert missing_function((answer("", {"a": 1}),), tools, "add, subtract; add(1)") == ""
    assert missing_function((answer("", {"a": 1}),), tools, "add, subtract") == "tool_calls ('add')"
