"""Effect of a source's settings ``format: chat`` and ``system`` on its rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lion_lightning.data.formats.pairing import PromptAnswers
from lion_lightning.data.formats.sft import Conversation
from lion_lightning.data.formats.turns import Message, read_dialogue
from lion_lightning.data.sources.json_text import parse_messages

_ANSWERS = ("completion", "response")


def as_chat(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """A row and its ``columns``, so that its plain text is read as a chat.

    A dialogue of Human and Assistant becomes messages; another prompt is the user's turn, and its completion is the
    assistant's.
    """
    values, named = dict(row), dict(columns)
    own = {name: columns.get(name, name) for name in ("text", "prompt", *_ANSWERS, "chosen", "rejected")}
    dialogues = {name: turns for name in own if (turns := read_dialogue(values.get(own[name])))}
    values |= {own[name]: turns for name, turns in dialogues.items()}
    if "text" in dialogues and "messages" not in {*values, *columns}:
        named.pop("text", None)
        named["messages"] = own["text"]
    if "prompt" in dialogues:  # what follows it is the assistant's, behind a space that belongs to the marks
        for name in (*_ANSWERS, "chosen", "rejected"):
            if isinstance(values.get(own[name]), str):
                values[own[name]] = [{"role": "assistant", "content": values[own[name]].strip()}]
        ranked = values.get(answers := columns.get("answers", "answers"))
        if isinstance(ranked, list):
            values[answers] = [answer.strip() if isinstance(answer, str) else answer for answer in ranked]
        return values, named
    for plain, turn in (("prompt", "question"), ("completion", "answer")):
        text = values.get(own[plain])
        if isinstance(text, str) and parse_messages(text, own[plain]) is text:
            named.pop(plain, None)
            named[turn] = own[plain]
    return values, named


def with_system_turn(example: Any, system: str) -> Any:
    """An example whose conversations begin with a system turn, as those that have one do already."""
    if isinstance(example, PromptAnswers):
        return example._replace(answers=tuple(with_system_turn(answer, system) for answer in example.answers))
    if not isinstance(example, Conversation):
        raise ValueError("`system` is set, but this row is plain text without turns; leave `system` out")
    if example.messages[0].role == "system":
        return example
    turns = None if example.prompt_turns is None else example.prompt_turns + 1
    return example._replace(messages=(Message("system", system), *example.messages), prompt_turns=turns)
