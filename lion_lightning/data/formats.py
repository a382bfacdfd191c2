"""The row formats that training data comes in, and how a raw row is recognised as one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Message(NamedTuple):
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool``.
        content: Its text; empty only for an assistant turn that does nothing but call tools.
        extra: Every other key of the row's message (``tool_calls``, ``name``, ...), handed to the chat template unchanged.
    """

    role: str
    content: str
    extra: dict[str, Any] | None = None


class Conversation(NamedTuple):
    """Turns that a chat template renders.

    Attributes:
        messages: The turns, in order.
        prompt_turns: How many leading messages are prompt when only the completion is trained; None for all but the
            last assistant message.
        tools: Tool definitions handed to the chat template, or None.
    """

    messages: tuple[Message, ...]
    prompt_turns: int | None = None
    tools: tuple[Any, ...] | None = None


class Completion(NamedTuple):
    """Plain text in two parts, no chat template: only the completion is trained under a mask."""

    prompt: str
    completion: str


class Text(NamedTuple):
    """Plain text, all of it trained."""

    text: str


Example = Conversation | Completion | Text


def recognise(row: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> Example:
    """Turn a raw row into the form that it is written in.

    Args:
        row: The raw row, keys to values.
        columns: The row's own name for a known column, e.g. ``{"prompt": "question", "completion": "answer"}``.

    Raises:
        ValueError: The row has no known form, or breaks the rules of its form. The message is one line without the
            row's place; the caller puts ``path:line`` before it.
    """
    raise NotImplementedError
