"""The turns of a conversation, read from messages in any of the known formats.

Every key of a message is used, is known to change nothing, or is named to whoever reads the log: the chat template gets
what is not read here, and :mod:`~lion_lightning.data.encoding.rendering` warns of keys that it does not read either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from lion_lightning.data.formats.column_table import ROLES
from lion_lightning.data.formats.message_keys import CHANGING, FLAGS, HARMLESS, may_be_a_flag, read_weight
from lion_lightning.data.formats.tool_calls import read_calls
from lion_lightning.data.formats.unused_columns import meaning_of, name_variants, printable
from lion_lightning.data.reports.row_messages import add_message, add_warning
from lion_lightning.data.sources.json_text import (
    TEXT_PARTS,
    BrokenJSONError,
    parse_content_parts,
    parse_shallow,
    read_json,
)
from lion_lightning.models.chat_template import REASONING


class Message(NamedTuple):
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool``.
        content: Its text; empty only for a system or tool turn, or an assistant turn that does nothing but call tools.
        extra: Every other key of the row's message (``tool_calls``, ``name``, ...), for the chat template to use.
        weight: What each of its tokens counts in the loss, as the row says: 1 unless it says anything, 0 for a turn
            that is context and no target.
        prefilled: Number of characters at the beginning of its content that were given to whoever wrote it, and are no
            target either.
    """

    role: str
    content: str
    extra: dict[str, Any] | None = None
    weight: float = 1.0
    prefilled: int = 0

    @property
    def is_unfinished(self) -> bool:
        """True if all of it is given, so that it is the beginning of an answer and no answer."""
        return 0 < self.prefilled == len(self.content)

    def to_dict(self) -> dict[str, Any]:
        """The message that a chat template is given."""
        return {**(self.extra or {}), "role": self.role, "content": self.content}


_SIDES = {
    **dict.fromkeys(("user", "human", "prompter", "input", "question", "instruction", "prompt", "query"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "output", "answer", "response", "completion"), "assistant"),
    "system": "system",
}
"""Keys of rounds, which say who speaks: ``{"human": "Hi", "assistant": "Hello"}``."""

_BEGUN = ("prefix", "prefill", "partial", "continue_final_message")
"""Keys of a message that is the beginning of an answer, where they are true."""

_CALLS = ("function_call", "tool_call", "tool_calls")
"""Roles of messages whose content is the JSON text of calls, in ShareGPT's dialects."""


def read_text(value: Any, name: str, may_be_empty: bool = False) -> str:
    """Require a value to be text; ``name`` is its path in the row, for errors."""
    if value is None:
        raise ValueError(f"{name} has no content; remove the row or fill it in")
    if not isinstance(value, str):
        raise ValueError(f"{name} is {type(value).__name__}, not text; convert it with a `transform`")
    if not (may_be_empty or value.strip()):
        raise ValueError(f"{name} is empty; remove the row or fill it in")
    return value


def read_turns(value: Any, name: str, may_be_empty: bool = False) -> tuple[Message, ...]:
    """Read a list of messages, or its JSON text; ``name`` is its path in the row, for errors."""
    if isinstance(value, str):
        value = read_json(value, name) if value.lstrip().startswith("[") else value
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{name} is {type(value).__name__}, not a list of messages")
    if not value:
        raise ValueError(f"{name} is empty; remove the row or give it messages")
    turns: list[Message] = []
    for number, turn in enumerate(value):
        turns += [_message(said, f"{name}[{number}]", may_be_empty) for said in _sides(turn)]
    return tuple(turns)


_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def continued(prompt: tuple[Message, ...], answer: tuple[Message, ...]) -> tuple[Message, ...]:
    """Turns of a prompt and its answer, joined to one turn where the prompt ends in the beginning of the answer."""
    if not (prompt and answer and prompt[-1].is_unfinished and answer[0].role == "assistant"):
        return prompt + answer
    begun, rest = prompt[-1], answer[0]
    extra = {**(begun.extra or {}), **(rest.extra or {})} or None
    joined = Message("assistant", begun.content + rest.content, extra, rest.weight, len(begun.content))
    return (*prompt[:-1], joined, *answer[1:])


def read_dialogue(text: Any) -> list[dict[str, str]] | None:
    r"""The messages of a dialogue written as text, as those of Anthropic's HH are; None for anything else.

    >>> read_dialogue("\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}, {'role': 'user', 'content': 'Bye'}]

    Args:
        text: The text; it begins with ``Human:``, and has a later ``Assistant:``. What both say loses the white space
            around it; an ``Assistant:`` at the end, with nothing behind it, asks for the answer.
    """
    if not isinstance(text, str):
        return None
    before, *said = _SPEAKER.split(text)
    if before.strip() or said[:1] != ["Human"] or "Assistant" not in said[::2]:
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[speaker], "content": words.strip()} for speaker, words in zip(said[::2], said[1::2], strict=True)
    ]
    return turns if turns[-1]["content"] or turns[-1]["role"] == "user" else turns[:-1]


def are_turns(value: Any) -> bool:
    """True if a value is a list of messages or rounds, with roles that are known."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        return False
    return all(isinstance(turn, Mapping) and (_role(turn) or _sides(turn) != [turn]) for turn in value)


def _role(turn: Mapping[str, Any]) -> str | None:
    return ROLES.get(str(turn.get("role") or turn.get("from")).strip().lower())


def _sides(turn: Any) -> list[Any]:
    """The messages of a round, which has a key for each speaker; anything else as it is."""
    if not isinstance(turn, Mapping) or turn.get("role") is not None or turn.get("from") is not None:
        return [turn]
    if turn.get("content") is not None or turn.get("value") is not None:
        return [turn]
    said = {key: value for key, value in turn.items() if value is not None and key.lower() in _SIDES}
    rest = {key: value for key, value in turn.items() if key not in said and value is not None}
    if not said or any((meaning := meaning_of(key)) and meaning.of_prompt for key in rest):
        return [turn]
    messages = [{"role": _SIDES[key.lower()], "content": value} for key, value in said.items()]
    return [*messages[:-1], {**rest, **messages[-1]}]


def _message(turn: Any, name: str, may_be_empty: bool) -> Message:
    """Read ``{role, content}`` and ShareGPT's ``{from, value}`` alike: sets of either kind hold both."""
    if not isinstance(turn, Mapping):
        raise ValueError(f"{name} is {type(turn).__name__}, not an object with role and content")
    own = {key: value for key, value in turn.items() if value is not None}
    speaker = _speaker(own, name)
    role, content = ROLES[speaker], _content(own, speaker, name)
    if not own:  # most messages have nothing else
        return Message(role, read_text(content, f"{name} ({role})", may_be_empty or role in ("system", "tool")))
    begun = [own.pop(key) for key in _BEGUN if own.get(key) is False or (role == "assistant" and own.get(key) is True)]
    weight = read_weight(own, role, name)
    extra = _extra(own, role, name)
    silent = may_be_empty or role in ("system", "tool") or "tool_calls" in extra
    text = read_text("" if content is None and "tool_calls" in extra else content, f"{name} ({role})", silent)
    return Message(role, text, extra or None, weight, len(text) if any(begun) else 0)


def _speaker(own: dict[str, Any], name: str) -> str:
    """Take the name of the role out of a message."""
    given = _either(own, "role", "from", name)
    speaker = given if isinstance(given, str) else ""
    speaker = speaker if speaker in ROLES else speaker.strip().lower()
    if given is None:
        keys = f"its other keys are {', '.join(map(printable, own))}" if own else "it is empty"
        raise ValueError(f"{name} has no role; give each message a role and content ({keys})")
    if speaker not in ROLES:
        raise ValueError(f"{name} has the role {repr(given)[:60]}; known roles are {', '.join(ROLES)}")
    if speaker == "developer":
        add_message("changed", "developer turns are read as system turns")
    return speaker


def _content(own: dict[str, Any], speaker: str, name: str) -> Any:
    """Take the content out of a message; parts are joined with nothing between them, as OpenAI has them."""
    content = _either(own, "content", "value", name)
    if content is None and not own.get("tool_calls"):
        content = own.pop("text", None)
    if speaker in _CALLS:
        with suppress(BrokenJSONError):  # other content is the message's text
            parsed = parse_shallow(content) if isinstance(content, str) else content
            calls = parsed if isinstance(parsed, list) else [parsed]
            if calls and all(isinstance(call, Mapping) and call.keys() & {"name", "function"} for call in calls):
                own["tool_calls"] = calls
                return None
    if ROLES[speaker] != "tool":  # whose result is often such JSON, and stays as it is
        content = parse_content_parts(content)
    if isinstance(content, str) or not isinstance(content, Sequence):
        return content
    return "".join(part if isinstance(part, str) else _part(part, name) for part in content)


def _either(own: dict[str, Any], key: str, other: str, name: str) -> Any:
    """Take one thing that goes by two names out of a message."""
    first, second = own.pop(key, None), own.pop(other, None)
    if first and second and ROLES.get(str(first), first) != ROLES.get(str(second), second):
        raise ValueError(f"{name} has both {key} and {other}, which differ; keep one of them (with a `transform`)")
    return second if first is None else first or second or first


def _part(part: Any, name: str) -> str:
    own = {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else {}
    kind = own.pop("type", "text" if "text" in own else type(part).__name__)
    text = own.pop("text", None)
    if kind in TEXT_PARTS and text is None:
        raise ValueError(f"{name} has a text part without text; fill it in or take it out (with a `transform`)")
    if kind not in TEXT_PARTS or not isinstance(text, str):
        raise ValueError(f"{name} has a content part of the kind {kind!r}; only text parts can be trained on")
    for key in _nonempty(own):
        if own[key] and not CHANGING.isdisjoint(name_variants(key)):
            raise ValueError(f"{name} has a text part with {key}, which cannot be trained on; take it out")
        if key in FLAGS or may_be_a_flag(key, own[key]):
            raise ValueError(
                f"{name} has a text part with {printable(key)}, and the parts of a turn are trained together or not at "
                "all; say it of the turn, as `train`, or take it out (with a `transform`)"
            )
        if key not in HARMLESS:
            add_warning(f"not used: key {key!r} of content parts")
    return text


def is_answer(turn: Mapping[str, Any]) -> bool:
    """True if a row's message, in any spelling, is an assistant turn."""
    return _role(turn) == "assistant"


def context(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A row's message that is not trained, whatever it says of that itself."""
    return {key: value for key, value in turn.items() if key not in (*FLAGS, "masked", "mask")} | {"train": False}


# --- everything else


def _extra(own: dict[str, Any], role: str, name: str) -> dict[str, Any]:
    """All other keys of a message that are not empty, for the template: one of them for the reasoning, if any."""
    extra = {key: own[key] for key in _nonempty(own)}
    calls = read_calls(extra, name)
    if calls and role != "assistant":
        raise ValueError(f"{name} is a {role} turn with tool calls, which only an assistant turn makes")
    if calls:
        extra["tool_calls"] = calls
    given = [key for key in REASONING if key in extra]
    for key in given:
        read_text(extra[key], f"{name}.{key}", may_be_empty=True)
        if extra[key] != extra[given[0]]:
            raise ValueError(f"{name} has both {given[0]} and {key}, which differ; keep one of them")
    for key in given[1:]:
        del extra[key]
    return extra


def _nonempty(own: Mapping[str, Any]) -> list[str]:
    return [key for key, value in own.items() if value is not None and value not in ("", [], {}, ())]
