"""Hashes of examples: which are equal, and which belong together."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

from lion_lightning.data.formats.pairing import Preference, PromptAnswer
from lion_lightning.data.formats.sft import Completion, Conversation, Example
from lion_lightning.data.formats.turns import Message


def digests(example: Example | Preference) -> tuple[bytes, bytes]:
    """Both digests of an example, of its content and of its group."""
    content = content_digest(example)
    return content, group_digest(example) if isinstance(example, Preference) else content


def content_digest(example: Example | Preference) -> bytes:
    """16 bytes that two examples share if, and only if, their content is equal.

    How many turns count as prompt is left out: the same conversation, written in two forms, is a duplicate. So is a
    pair's margin: the same two answers, scored twice, are one pair.
    """
    return _digest(_content(example))


def group_digest(example: Example | Preference) -> bytes:
    """16 bytes that two pairs share if, and only if, their prompts are equal; for anything else its own digest.

    What shares a group is never split between training and validation.
    """
    if isinstance(example, Preference):
        return prompt_digest(prompt_of(example.chosen))
    return content_digest(example)


def prompt_digest(prompt: PromptAnswer) -> bytes:
    """The group of all pairs of this prompt: a conversation that ends before the answer, or an empty completion."""
    return _digest(["prompt", _content(prompt)])


def _content(example: Example | Preference) -> list[Any]:
    content: Any = example
    if isinstance(example, Preference):
        content = [_content(example.chosen), _content(example.rejected)]
    elif isinstance(example, Conversation):
        content = [*map(_turn, example.messages)], None, example.tools, *filter(None, [example.chat_template_kwargs])
    return [type(example).__name__, content]


def _turn(message: Message) -> list[Any]:
    """A turn's content; the mark of one that is not trained is written only where there is one."""
    return [*message[:3], *([] if message.trained else ["not trained"])]


def prompt_of(side: PromptAnswer) -> PromptAnswer:
    """The prompt alone, of a prompt with an answer."""
    if isinstance(side, Completion):
        return side._replace(completion="")
    turns = side.messages[: side.prompt_turns]
    # None of them is trained, whatever the row says of that: it is one prompt.
    return side._replace(messages=tuple(turn if turn.trained else turn._replace(trained=True) for turn in turns))


def _digest(content: list[Any]) -> bytes:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return blake2b(text.encode(), digest_size=16).digest()
