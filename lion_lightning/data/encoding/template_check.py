"""Checks that a rendered text shows all of a conversation; templates leave things out without an error.

The words of a turn are looked for anywhere and in any order: templates strip and join white space, write text as JSON,
and put reasoning between marks.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from lion_lightning.data.formats.turns import Message
from lion_lightning.data.reports.row_messages import add_warning
from lion_lightning.models.chat_template import REASONING

CHANGED = "the chat template shows only a part of a turn that is not trained"


def missing_of_answer(turn: Message, text: str, reasoning: bool = True) -> str:
    """Name of the first part of an answer that a text does not show; empty where it shows all.

    Args:
        turn: An assistant turn.
        text: Its part of a rendered text.
        reasoning: Whether its reasoning may not be missing, either.
    """
    if turn.extra is None and turn.content.strip() in text:
        return ""
    rest = _without_spaces(text)
    # The longest first, and each found only once: a short one may be a part of a long one.
    for name, variants in sorted(_parts(turn, reasoning), key=lambda part: -len(part[1][0])):
        found = next((variant for variant in variants if variant in rest), None)
        if found is None:
            return name
        rest = rest.replace(found, "\0", 1)
    return ""


def missing_turn(messages: Sequence[Message], text: str) -> str:
    """Name of the first turn whose words a text does not show; empty where it shows all.

    Of answers the reasoning may be left out: most templates do so in earlier turns, and a model that is asked does not
    see it. A template that cuts a few words out of a turn (a switch that turns reasoning off, say) is warned of. All of
    an answer that is trained is looked for by :func:`missing_of_answer`.

    Args:
        messages: The turns.
        text: The text of all of them.
    """
    if _all_in_order(messages, text):
        return ""
    rest = _without_spaces(text)
    # The longest first, and each found only once: a short one may be a part of a long one.
    for number, message in sorted(enumerate(messages), key=lambda item: -len(item[1].content)):
        content = message.content if message.role != "assistant" else message.content.rpartition("</think>")[2]
        found = next((variant for variant in _variants(content) if variant in rest), None)
        words = content.split()
        if found:
            rest = rest.replace(found, "\0", 1)
        elif found is None and 2 * sum(word in rest for word in words) > len(words):
            add_warning(CHANGED)
        elif found is None:
            return f"content of message {number} ({message.role})"
    return ""


def _all_in_order(messages: Sequence[Message], text: str) -> bool:
    """True if each turn's words stand behind those of the turn before, as nearly always."""
    position = 0
    for message in messages:
        words = message.content.strip()
        found = text.find(words, position)
        if found < 0:
            return False
        position = found + len(words)
    return True


def missing_function(messages: Sequence[Message], tools: Sequence[Any] | None, text: str) -> str:
    """Name of the first function that a text names less often than it is defined and called; empty where none is."""
    defined = Counter(str(tool["function"].get("name", "")) for tool in tools or () if "function" in tool)
    called: Counter[str] = Counter()
    for message in messages:
        called.update(call["function"]["name"] for call in (message.extra or {}).get("tool_calls", ()))
    for name, count in (defined + called).items():
        if (found := text.count(name)) < count:
            return f"{'tool_calls' if found and name in called else 'tools'} ({name!r})"
    return ""


def _parts(turn: Message, reasoning: bool) -> Iterator[tuple[str, list[str]]]:
    """The parts of a turn: a name for messages, and how a text may write it."""
    extra = turn.extra or {}
    contents = re.split(r"</?think>", turn.content) if reasoning else [turn.content.rpartition("</think>")[2]]
    parts: list[tuple[str, Any]] = [("content", part) for part in contents]
    parts += [(key, extra.get(key, "")) for key in REASONING if reasoning]
    for call in extra.get("tool_calls", ()):
        parts.append(("tool_calls", call["function"]["name"]))
        parts += [("tool_calls", leaf) for leaf in _leaves(call["function"]["arguments"])]
    for key, part in parts:
        words = part if isinstance(part, str) else json.dumps(part)
        if words.strip():
            variants = _variants(words) if isinstance(part, str) else [words, str(part)]
            yield f"{key} ({words.strip()[:40]!r})", variants


def _variants(words: str) -> list[str]:
    """A text as it is, as JSON writes it, and as HTML does; without white space."""
    written = [words, json.dumps(words, ensure_ascii=False)[1:-1], json.dumps(words)[1:-1], escape(words)]
    return list(map(_without_spaces, written))


def _leaves(value: Any) -> Iterator[Any]:
    """Keys, texts and numbers of a structure."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _without_spaces(text: str) -> str:
    return "".join(text.split())
