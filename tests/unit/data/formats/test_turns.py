"""What a message of a row says: all of it is read, refused by name, or warned of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from lion_lightning.data.formats.column_table import THOUGHTS
from lion_lightning.data.formats.message_keys import unread_keys
from lion_lightning.data.formats.sft import recognize
from lion_lightning.data.formats.tool_calls import read_tools, without_nulls
from lion_lightning.data.formats.turns import Message, read_turns
from lion_lightning.data.reports.row_messages import collect_messages
from lion_lightning.data.sources.source import Source, open_rows

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


def answer(**said: Any) -> Message:
    """The assistant turn that a row's message is read as."""
    return read_turns([{"role": "user", "content": "?"}, {"role": "assistant", **said}], "messages")[1]


# --- which turns are trained


@pytest.mark.parametrize("key", ["weight", "train", "training", "trainable", "loss", "loss_mask", "loss_weight"])
@pytest.mark.parametrize(
    ("value", "weight"),
    [(0, 0.0), (0.0, 0.0), (False, 0.0), ("false", 0.0), (1, 1.0), (1.0, 1.0), (True, 1.0), (None, 1.0)],
)
def test_a_flag_of_a_turn_says_whether_it_is_trained_and_is_not_for_the_template(
    key: str, value: Any, weight: float
) -> None:
    assert answer(content="four", **{key: value}) == Message("assistant", "four", None, weight)


@pytest.mark.parametrize("key", ["weight", "loss_weight", "loss_scale"])
@pytest.mark.parametrize(("value", "weight"), [(0.5, 0.5), (2, 2.0), ("0.25", 0.25), (1e-3, 0.001), (0, 0.0)])
def test_a_weight_of_a_turn_is_any_number_of_at_least_0(key: str, value: Any, weight: float) -> None:
    assert answer(content="four", **{key: value}) == Message("assistant", "four", None, weight)


def test_a_weight_and_a_flag_that_agree_are_the_weight() -> None:
    assert answer(content="four", weight=0.5, train=True).weight == 0.5
    assert answer(content="four", weight=2, masked=False, loss_weight="2.0").weight == 2.0
    assert answer(content="four", weight=0, train=False).weight == 0.0


def test_masked_means_the_opposite_of_trained() -> None:
    assert answer(content="four", masked=True).weight == 0.0
    assert answer(content="four", masked=False).weight == 1.0


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"train": 0.5}, r"messages\[1\]\.train is 0\.5; .*\(1 or true\) or not \(0 or false\); call .* `weight`"),
        ({"loss": 2}, r"messages\[1\]\.loss is 2; "),
        ({"weight": -0.5}, r"messages\[1\]\.weight is -0\.5; a weight is a finite number of at least 0, true or false"),
        ({"weight": float("nan")}, r"messages\[1\]\.weight is nan; "),
        ({"weight": float("inf")}, r"messages\[1\]\.weight is inf; "),
        ({"weight": 1e39}, r"messages\[1\]\.weight is 1e\+39; "),
        ({"weight": "half"}, r"messages\[1\]\.weight is 'half'; "),
        ({"loss_scale": [1, 0]}, r"messages\[1\]\.loss_scale is \[1, 0\]; "),
        ({"weight": 1, "loss_weight": 0.5}, r"messages\[1\] has more than one weight \(loss_weight, weight\)"),
        ({"loss_mask": [0, 1]}, r"messages\[1\]\.loss_mask is \[0, 1\]; "),
        ({"mask": 1}, r"messages\[1\]\.mask could mean .* call it `train`"),
        ({"no_loss": True}, r"messages\[1\]\.no_loss could mean"),
        ({"is_target": 0}, r"messages\[1\]\.is_target could mean"),
        ({"weight": 1, "train": False}, r"messages\[1\] says both .*\(weight, train\)"),
    ],
)
def test_a_flag_that_cannot_be_followed_is_refused_by_name(said: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        answer(content="four", **said)


def test_a_turn_of_the_user_that_is_to_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match=r"messages\[0\]\.train asks to train a user turn, and only assistant turns"):
        read_turns([{"role": "user", "content": "?", "train": True}], "messages")
    assert read_turns([{"role": "user", "content": "?", "weight": 0}], "messages")[0] == Message("user", "?", None, 0.0)


# --- content


def test_text_parts_are_joined_and_every_other_kind_is_refused_by_name() -> None:
    parts = [{"type": "text", "text": "He", "image_url": None}, {"type": "output_text", "text": "llo"}, {"text": "!"}]
    assert answer(content=parts).content == "Hello!"
    for kind in ("reasoning", "thinking", "image_url", "audio", "refusal"):
        with pytest.raises(ValueError, match=f"content part of the kind '{kind}'; only text parts"):
            answer(content=[{"type": kind, "text": "secret"}, {"type": "text", "text": "four"}])


def test_a_text_part_that_holds_a_picture_too_is_refused_and_other_keys_are_counted() -> None:
    with pytest.raises(ValueError, match="text part with image_url"):
        answer(content=[{"type": "text", "text": "four", "image_url": {"url": "a.png"}}])
    with collect_messages() as noted:
        answer(content=[{"type": "text", "text": "four", "cache": {"type": "short"}, "id": 3}])
    assert noted["warning"] == {"not used: key 'cache' of content parts": 1}


@pytest.mark.parametrize(
    ("key", "value"),
    [("train", False), ("weight", 0), ("weight", 0.5), ("loss_mask", [0, 1]), ("masked", True), ("no_loss", "true")],
)
def test_a_part_that_is_to_be_trained_otherwise_than_its_turn_is_refused_by_name(key: str, value: Any) -> None:
    parts = [{"type": "text", "text": "a", key: value}, {"type": "text", "text": "b"}]
    with pytest.raises(ValueError, match=rf"messages\[1\] has a text part with {key}, and the parts of a turn"):
        answer(content=parts)
    assert answer(content=[{"type": "text", "text": "a", "train": None}]).content == "a"


def test_parts_may_be_json_text_and_other_json_is_an_answer() -> None:
    parts = [{"type": "text", "text": "ye", "image_url": None}, {"type": "output_text", "text": "s"}]
    assert answer(content=json.dumps(parts)).content == "yes"
    assert answer(value=json.dumps(parts, indent=2)).content == "yes"
    for kind in ("image", "image_url"):
        with pytest.raises(ValueError, match=f"content part of the kind '{kind}'"):
            answer(content=json.dumps([{"type": kind, kind: "a.png"}, *parts]))
    with pytest.raises(ValueError, match="text part with train"):
        answer(content=json.dumps([{"type": "text", "text": "yes", "train": False}]))
    said = json.dumps(parts)
    (tool,) = read_turns([{"role": "tool", "content": said}], "messages")
    assert tool.content == said  # as the tool returned it


@pytest.mark.parametrize(
    "said",
    [
        "[]",
        "[1]",
        "[x",
        '[{"type": "text"',
        '[{"type": "text", "text": "a"}] is a list',
        '[{"type": "text", "text": "a"}, 1]',
        '[{"type": "text", "value": "a"}]',
        '[{"type": ["text"], "text": "a"}]',
        '[{"type": "city", "text": "a"}]',
        '[{"type": "text", "text": "a"}, {"type": "button", "text": "b"}]',
        '[{"type": "image", "width": 3}]',
        '[{"text": "a"}]',
        '{"type": "text", "text": "a"}',
    ],
)
def test_text_that_is_no_list_of_parts_stays_as_it_is(said: str) -> None:
    assert answer(content=said).content == said


def test_the_two_names_of_one_thing_may_not_differ() -> None:
    assert answer(**{"from": "gpt"}, content="four", value="four").content == "four"
    with pytest.raises(ValueError, match=r"messages\[1\] has both content and value, which differ"):
        answer(content="four", value="five")
    with pytest.raises(ValueError, match=r"messages\[1\] has both role and from, which differ"):
        answer(**{"from": "human"}, content="four")


def test_messages_may_be_json_text() -> None:
    assert read_turns('[{"role": "user", "content": "Hi"}]', "messages") == (Message("user", "Hi"),)
    for text in ("Hi", "{", '{"role": "user"}', "[" * 100_000):
        with pytest.raises(ValueError, match=r"messages is (str, not a list of messages|text that is broken JSON)"):
            read_turns(text, "messages")


# --- calls and tools


@pytest.mark.parametrize(
    "said",
    [
        {"tool_calls": [CALL]},
        {"tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}]},
        {"tool_calls": [{"name": "weather", "arguments": '{"city": "Oslo"}'}]},
        {"tool_calls": '[{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]'},
        {"tool_calls": [{**CALL, "function": {**CALL["function"], "arguments": {"city": "Oslo", "unit": None}}}]},  # type: ignore[dict-item]
        {"tool_calls": [{"function": {"name": "weather", "parameters": {"city": "Oslo"}}}]},
        {"tool_calls": [{"name": "weather", "args": {"city": "Oslo"}}]},
        {"function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {"function_call": '{"name": "weather", "arguments": {"city": "Oslo"}}', "tool_calls": None},
        {"tool_calls": [{"name": "weather", "arguments": json.dumps('{"city": "Oslo"}')}]},
        {"function_call": {"name": "weather", "arguments": json.dumps(json.dumps('\ufeff{"city": "Oslo"}'))}},
        {"tool_calls": json.dumps([json.dumps({"name": "weather", "args": json.dumps('{"city": "Oslo"}')})])},
    ],
    ids=[
        "mapping",
        "arguments as text",
        "flat",
        "all as text",
        "nulls of arrow",
        "parameters",
        "args",
        "legacy",
        "legacy as text",
        "arguments as text of text",
        "legacy as text of text of text",
        "all of it as text of text",
    ],
)
def test_the_same_call_in_any_spelling_is_the_same_message(said: dict[str, Any]) -> None:
    assert answer(content=None, **said) == Message("assistant", "", {"tool_calls": [CALL]})


def test_a_null_in_json_text_is_kept_as_it_was_written_on_purpose() -> None:
    call = answer(content=None, function_call={"name": "weather", "arguments": '{"unit": null}'})
    assert (call.extra or {})["tool_calls"][0]["function"]["arguments"] == {"unit": None}


def test_nulls_of_structs_go_at_any_depth_and_those_of_lists_stay() -> None:
    assert without_nulls({"a": None, "b": [{"c": None, "d": [None, 1]}]}) == {"b": [{"d": [None, 1]}]}


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"tool_calls": [{"type": "function"}]}, r"messages\[1\]\.tool_calls\[0\] names no function"),
        ({"tool_calls": [{"function": {"name": "a", "arguments": "{city: Oslo}"}}]}, r"arguments is not valid JSON"),
        ({"tool_calls": [{"function": {"name": "a", "arguments": "[1]"}}]}, r"arguments is list, not a JSON object"),
        ({"tool_calls": [{"function": {"name": "a", "arguments": '"Oslo"'}}]}, r"arguments is not valid JSON"),
        ({"tool_calls": "call it"}, r"messages\[1\]\.tool_calls is not valid JSON"),
        ({"tool_calls": [{"function": {"name": "a", "arguments": '{"a": ' * 900 + "1" + "}" * 900}}]}, "levels deep"),
        ({"tool_calls": [CALL], "function_call": {"name": "a"}}, "has both tool_calls and function_call"),
    ],
)
def test_a_call_that_cannot_be_read_is_refused_by_name(said: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        answer(content=None, **said)


def test_a_user_turn_makes_no_calls() -> None:
    with pytest.raises(ValueError, match=r"messages\[0\] is a user turn with tool calls"):
        read_turns([{"role": "user", "content": "?", "tool_calls": [CALL]}], "messages")


@pytest.mark.parametrize("key", ["tool_calls", "function_call"])
def test_calls_that_are_the_json_text_null_are_none(key: str) -> None:
    assert answer(content="four", **{key: "null"}) == Message("assistant", "four")


def test_arguments_that_are_the_json_text_null_are_empty() -> None:
    made = answer(content=None, tool_calls=[{"function": {"name": "now", "arguments": "null"}}]).extra
    assert made == {"tool_calls": [{"type": "function", "function": {"name": "now", "arguments": {}}}]}


@pytest.mark.parametrize("key", ["prefix", "prefill", "partial", "continue_final_message"])
def test_a_message_that_begins_no_answer_may_say_so(key: str) -> None:
    assert answer(content="four", **{key: False}) == Message("assistant", "four")
    assert read_turns([{"role": "user", "content": "?", key: False}], "messages") == (Message("user", "?"),)


def test_a_beginning_may_be_called_so_twice() -> None:
    assert answer(content="four", prefix=True, partial=True) == Message("assistant", "four", prefilled=4)


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"Role": "user", "Content": "?"}, r"has no role; give .* \(its other keys are Role, Content\)"),
        ({}, r"has no role; give each message a role and content \(it is empty\)"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "has a text part without text; fill it in"),
    ],
)
def test_what_a_message_lacks_is_named(message: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"messages\[0\] {complaint}"):
        read_turns([message], "messages")


def test_an_empty_list_of_calls_is_no_call() -> None:
    assert answer(content="four", tool_calls=[], name="") == Message("assistant", "four")


def test_the_same_tools_in_any_spelling_are_the_same() -> None:
    schema = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    tool = {"type": "function", "function": schema}
    text = '[{"type": "function", "function": {"name": "weather", "parameters": '
    text += '{"type": "object", "properties": {"city": {"type": "string"}}}}}]'
    arrow = {**tool, "function": {**schema, "strict": None, "parameters": {**schema["parameters"], "required": None}}}  # type: ignore[dict-item]
    written = {**tool, "function": {**schema, "parameters": json.dumps(schema["parameters"])}}
    for tools in ([tool], text, [text[1:-1]], [schema], [arrow], tool, [written]):
        assert read_tools({"tools": tools}) == (tool,)
    assert read_tools({"tools": []}) is read_tools({}) is None


# --- everything else


def test_thoughts_have_three_names_and_may_not_differ() -> None:
    assert answer(content="four", thinking="hm", reasoning="hm").extra == {"reasoning": "hm"}
    with pytest.raises(ValueError, match=r"messages\[1\] has both reasoning_content and thinking, which differ"):
        answer(content="four", thinking="hm", reasoning_content="so")
    with pytest.raises(ValueError, match=r"messages\[1\]\.reasoning is list, not text"):
        answer(content="four", reasoning=["hm"])


def test_keys_that_no_template_reads_are_harmless_counted_or_refused() -> None:
    turn = Message("assistant", "four", {"id": 7, "name": "Ann", "mood": "good", "images": ["a.png"], "prefix": False})
    with collect_messages() as noted, pytest.raises(ValueError, match="leaves out the row's images of message 0"):
        unread_keys([turn], lambda key: False)
    assert noted["warning"] == {"not used: key 'mood' of messages, which the chat template does not read": 1}
    unread_keys([turn], lambda key: key in ("images", "mood"))
    thought = Message("assistant", "four", {"thinking": "hm"})
    with collect_messages() as notes:
        unread_keys([thought], lambda key: key == "reasoning_content")  # it is given under that name
        unread_keys([thought], lambda key: False)
    text = "not used: thinking of turns that are not trained, which the chat template does not read"
    assert notes["warning"] == {text: 1}


@pytest.mark.parametrize("key", [*THOUGHTS, "CoT", "chainOfThought", "internal-monologue"])
def test_thoughts_under_any_name_are_refused_in_messages_as_in_columns(key: str) -> None:
    said = answer(content="four", **{key: "two and two"})
    with pytest.raises(
        ValueError, match=rf"leaves out the row's {key} of message 0, which changes what it means; take"
    ):
        unread_keys([said], lambda read: False)
    unread_keys([said], lambda read: read == key)
    with pytest.raises(ValueError, match=rf"the column '{key}' holds a part of the answer"):
        recognize({"question": "2+2?", "answer": "four", key: "two and two"})


def test_the_names_of_thoughts_are_those_of_both_lists() -> None:
    assert {"cot", "chain_of_thought", "think", "rationale", "analysis", "scratchpad"} <= set(THOUGHTS)


@pytest.mark.parametrize("key", ["tools", "functions"])
def test_tools_inside_of_a_message_are_refused_by_name(key: str) -> None:
    (system,) = read_turns([{"role": "system", "content": "Help.", key: [{"name": "weather"}]}], "messages")
    with pytest.raises(ValueError, match=rf"leaves out the row's {key} of message 0, .* to the row's column `tools`"):
        unread_keys([system], lambda read: False)
    unread_keys([system], lambda read: read == key)


def test_a_row_says_the_same_from_json_lines_and_from_parquet(tmp_path: Path) -> None:
    def row(name: str, **arguments: Any) -> dict[str, Any]:
        call = {"id": "call00001", "type": "function", "function": {"name": name, "arguments": arguments}}
        schema = {"name": name, "parameters": {"properties": {key: {"type": "string"} for key in arguments}}}
        return {
            "messages": [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "cold", "name": name},
                {"role": "assistant", "content": "Cold.", "weight": 1},
            ],
            "tools": [{"type": "function", "function": schema}],
        }

    rows = [row("weather", city="Oslo"), row("add", a="1", b={"c": "2"})]  # Arrow gives each the keys of the other
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stored = pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    (tmp_path / "exported.jsonl").write_text("".join(json.dumps(row) + "\n" for row in stored))
    assert "null" in (tmp_path / "exported.jsonl").read_text().replace('"content": null', "")
    read = [
        [
            example
            for each in open_rows(str(path)).take(np.arange(2))
            for example in Source(str(path)).examples(each, read_one)
        ]
        for path in sorted(tmp_path.iterdir())
    ]
    assert read[0] == read[1] == read[2]


def read_one(row: Any, columns: Any) -> list[Any]:
    return [recognize(row, columns)]
