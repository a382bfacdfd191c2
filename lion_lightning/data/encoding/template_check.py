"""Whether a text shows what turns say: templates leave things out without a word.

What a turn says is looked for, not where or in which order it stands: templates strip and join white space, write text
as JSON, and put thoughts between marks of their own.
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

CHANGED = "the chat template shows only a part of what a turn says that is not trained"


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
    """The first turn whose words a text does not hold; empty where there is none.

    Of answers the thoughts may be left out: most templates do so in earlier turns, and a model that is asked does not
    see them. A template that cuts a word or two out of a turn, a switch that turns thinking off say, is warned of.
    Whether an answer to train is shown wholly is for :func:`missing_of_answer` to say.

    Args:
        messages: The turns.
        shown: The text of all of them.
    """
    return "" if _all_in_order(messages, shown) else _missing_words(messages, shown)


def _all_in_order(messages: Sequence[Message], shown: str) -> bool:
    """Whether each turn's words stand behind those of the turn before, as nearly always."""
    place = 0
    for message in messages:
        words = message.content.strip()
        if (found := shown.find(words, place)) < 0:
            return False
        place = found + len(words)
    return True


def _missing_words(messages: Sequence[Message], shown: str) -> str:
    """The first turn whose words stand nowhere in a text, each in a place of its own."""
    rest = _squeezed(shown)
    for number, message in sorted(enumerate(messages), key=lambda item: -len(item[1].content)):
        words = message.content if message.role != "assistant" else message.content.rpartition("</think>")[2]
        found = next((spelling for spelling in _spellings(words) if spelling in rest), None)
        if found:
            rest = rest.replace(found, "\0", 1)
        elif found is None and 2 * sum(word in rest for word in words.split()) > len(words.split()):
            add_warning(CHANGED)
        elif found is None:
            return f"content of message {number} ({message.role})"
    return ""


def missing_function(messages: Sequence[Message], tools: Sequence[Any] | None, shown: str) -> str:
    """The first function that a text does not name as often as it is defined and called; empty where there is none.

    Args:
        messages: The turns.
        tools: Tool definitions.
        shown: The text.
    """
    defined = Counter(str(tool["function"].get("name", "")) for tool in tools or () if "function" in tool)
    calls = [call for message in messages for call in (message.extra or {}).get("tool_calls", ())]
    called = Counter(call["function"]["name"] for call in calls)
    for name, count in (defined + called).items():
        if (found := shown.count(name)) < count:
            return f"{'tool_calls' if found and name in called else 'tools'} ({name!r})"
    return ""


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
