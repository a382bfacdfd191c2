"""Hashes of examples: of their content, and of the prompt that answers share."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

from lion_lightning.data.formats.pairing import PromptAnswer, PromptAnswers
from lion_lightning.data.formats.sft import Completion, Conversation, Example


def digests(example: Example | PromptAnswers) -> tuple[bytes, bytes]:
    """Both digests of an example, of its content and of its group."""
    content = content_digest(example)
    return content, group_digest(example) if isinstance(example, PromptAnswers) else content


def content_digest(example: Example | PromptAnswers) -> bytes:
    """16-byte hash of an example's content.

    The number of prompt turns is not part of it: the same conversation, written in two forms, is a duplicate. Nor are
    the values of pairs: the same two answers, scored twice, are one pair. Without pairs the values are what is trained:
    an answer that has one label here and the other there is two examples.
    """
    return _digest(_content(example))


def group_digest(example: Example | PromptAnswers) -> bytes:
    """16-byte hash of the prompt of answers; for anything else of its content.

    Examples with the same hash are never split between training and validation.
    """
    if isinstance(example, PromptAnswers):
        return prompt_digest(prompt_of(example.answers[0]))
    return content_digest(example)


def prompt_digest(prompt: PromptAnswer) -> bytes:
    """The group of all examples of this prompt: a conversation that ends before the answer, or an empty completion."""
    return _digest(["prompt", _content(prompt)])


def _content(example: Example | PromptAnswers) -> list[Any]:
    content: Any = example
    if isinstance(example, PromptAnswers):
        content = [list(map(_content, example.answers)), example.pairs or ["values", example.values]]
    elif isinstance(example, Conversation):
        # Rare fields are written only where they are set.
        turns = []
        for turn in example.messages:
            given = {"prefilled": turn.prefilled} if turn.prefilled else None
            turns.append([*turn[:3], *([] if turn.weight == 1.0 else [turn.weight]), *filter(None, [given])])
        content = [turns, None, example.tools, *filter(None, [example.chat_template_kwargs])]
    return [type(example).__name__, content]


def prompt_of(example: PromptAnswer) -> PromptAnswer:
    """The prompt alone, of a prompt with an answer."""
    if isinstance(example, Completion):
        return example._replace(completion="")
    # No turn of a prompt is trained, whatever its weight: it is one prompt.
    turns = tuple(turn._replace(weight=1.0) for turn in example.messages[: example.prompt_turns])
    return example._replace(messages=turns)


def _digest(content: list[Any]) -> bytes:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return blake2b(text.encode(), digest_size=16).digest()
