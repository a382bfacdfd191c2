"""Whether a text shows what turns say: templates leave things out without a word.

What a turn says is looked for, not where or in which order it stands: templates strip and join white space, write text
as JSON, and put thoughts between marks of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from lion_lightning.data.turns import Message
from lion_lightning.models.chat_template import REASONING


def missing_of_answer(turn: Message, shown: str) -> str:
    """The first thing that an answer says and its text does not, with its name; empty where there is none.

    Args:
        turn: An assistant turn.
        shown: Its part of a rendered text.
    """
    if turn.extra is None and turn.content.strip() in shown:
        return ""
    rest = _squeezed(shown)
    # The longest first, and each in a place of its own: a short one may be a part of a long one.
    for name, spellings in sorted(_said(turn), key=lambda said: -len(said[1][0])):
        found = next((spelling for spelling in spellings if spelling in rest), None)
        if found is None:
            return name
        rest = rest.replace(found, "\0", 1)
    return ""


def missing_turn(messages: Sequence[Message], shown: str) -> str:
    """The first turn whose words, or the names of whose calls, a text does not hold; empty where there is none.

    Of answers the thoughts may be left out: most templates do so in earlier turns, and a model that is asked does not
    see them. Whether an answer to train is shown wholly is for :func:`missing_of_answer` to say.

    Args:
        messages: The turns.
        shown: The text of all of them.
    """
    place = 0
    for number, message in enumerate(messages):
        words = message.content.strip()
        found = shown.find(words, place)
        if found >= 0:
            place = found + len(words)
        elif not _holds(shown, words if message.role != "assistant" else words.rpartition("</think>")[2]):
            return f"content of message {number} ({message.role})"
        for call in (message.extra or {}).get("tool_calls", ()):
            if call["function"]["name"] not in shown:
                return f"tool_calls of message {number}"
    return ""


def missing_tool(tools: Sequence[Any] | None, shown: str) -> str:
    """The first tool that a text does not name; empty where there is none.

    Args:
        tools: Tool definitions.
        shown: The text.
    """
    names = (str(tool["function"].get("name", "")) for tool in tools or () if "function" in tool)
    return next((name for name in names if name not in shown), "")


def _holds(shown: str, words: str) -> bool:
    return words.strip() in shown or any(spelling in _squeezed(shown) for spelling in _spellings(words))


def _said(turn: Message) -> Iterator[tuple[str, list[str]]]:
    """What a turn says, piece by piece: its name for people, and how it may be spelled."""
    extra = turn.extra or {}
    for piece in re.split(r"</?think>", turn.content):
        yield from _named("content", piece)
    for key in REASONING:
        yield from _named(key, extra.get(key, ""))
    for call in extra.get("tool_calls", ()):
        yield from _named("tool_calls", call["function"]["name"])
        for leaf in _leaves(call["function"]["arguments"]):
            yield from _named("tool_calls", leaf)


def _named(key: str, piece: Any) -> Iterator[tuple[str, list[str]]]:
    words = piece if isinstance(piece, str) else json.dumps(piece)
    if words.strip():
        excerpt = words.strip()[:40]
        spellings = _spellings(words) if isinstance(piece, str) else [words, str(piece)]
        yield f"{key} ({excerpt!r})", spellings


def _spellings(words: str) -> list[str]:
    written = [words, json.dumps(words, ensure_ascii=False)[1:-1], json.dumps(words)[1:-1], escape(words)]
    return [_squeezed(spelling) for spelling in written]


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


def _squeezed(text: str) -> str:
    return "".join(text.split())
