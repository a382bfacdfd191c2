"""Text of an example, with the characters that are trained and their weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import singledispatchmethod
from typing import Any, Literal, NamedTuple, get_args

from lion_lightning.data.encoding.answer_spans import Span
from lion_lightning.data.encoding.rendering import ChatRenderer
from lion_lightning.data.formats.sft import Completion, Conversation, Example, Text

Mask = Literal["assistant", "completion", "last_turn", "none"]

_REASONING = re.compile(r"(?:\A|<think>)(?:(?!<think>).)*?</think>\s*", re.DOTALL)  # opened by the prompt, or here
_NO_REASONING = re.compile(r"\s*(?:<think>\s*)?</think>\s*")  # a template's, for an answer without any


class Target(NamedTuple):
    """Characters to train, and what each of their tokens counts in the loss."""

    start: int
    end: int
    weight: float = 1.0


class Draft(NamedTuple):
    """Text to tokenize.

    Attributes:
        text: All of it.
        targets: The characters to train.
        reasoning: The characters of reasoning, with the marks and the white space around it.
        start: Where the answer begins.
        templated: Whether a chat template has written it; else BOS and EOS are still to be added.
        parts: The texts of the row that it is made of.
        starts: Where a model begins to write, ascending.
    """

    text: str
    targets: Sequence[Target]
    reasoning: Sequence[Span]
    start: int
    templated: bool
    parts: Sequence[str]
    starts: Sequence[int]

    def brings_space(self, start: int) -> bool:
        """True if a text of the row begins at a character, and with white space."""
        return any(part[:1].isspace() and self.text.startswith(part.rstrip(), start) for part in self.parts)

    def checked(self) -> Draft:
        """Refuse half characters: the tokenizer would refuse the batch without naming the row."""
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not valid Unicode ({error.reason}); fix the row's escapes") from None
        return self


class Supervision:
    """Renders examples and finds what of them is trained, and what is reasoning.

    Args:
        renderer: Renders conversations.
        mask: See :class:`~lion_lightning.data.encoding.chat.ChatEncoder`.

    Raises:
        ValueError: The mask is unknown.
    """

    def __init__(self, renderer: ChatRenderer, mask: Mask) -> None:
        if mask not in get_args(Mask):
            raise ValueError(f"mask: {mask!r} is unknown; choose {', '.join(get_args(Mask))}")
        self.renderer, self.mask = renderer, mask

    def draft(self, example: Example) -> Draft:
        """The text of an example, and what of it is trained.

        Raises:
            ValueError: It cannot be rendered or masked exactly.
        """
        return self._draft(example).checked()

    @singledispatchmethod
    def _draft(self, example: Any) -> Draft:
        raise TypeError(f"{type(example).__name__} is not a known form")

    @_draft.register
    def _(self, example: Text) -> Draft:
        return self._plain(example.text, 0, texts(example))

    @_draft.register
    def _(self, example: Completion) -> Draft:
        start = 0 if self.mask == "none" else len(example.prompt)
        return self._plain(example.prompt + example.completion, start, texts(example))

    def _plain(self, text: str, start: int, parts: Sequence[str]) -> Draft:
        """Text without a template, all of it trained from ``start`` on."""
        found = _REASONING.finditer(text[start:]) if "</think>" in text else ()
        reasoning = [(start + each.start(), _behind(text, start + each.end())) for each in found]
        return Draft(text, [Target(start, len(text))], reasoning, start, False, parts, (start,))

    @_draft.register
    def _(self, example: Conversation) -> Draft:
        messages = example.messages
        if self.mask == "none":
            if any(turn.weight != 1.0 for turn in messages):
                raise ValueError("the row gives a turn a weight of its own, and mask: none trains all of it alike")
            text = self.renderer.render(example)
            return Draft(text, [Target(0, len(text))], (), 0, True, texts(example), (0,))
        text, answers, start = self.renderer.answers(example, self._first_target(example))
        targets, reasoning, starts = [], [], {start}
        for answer in answers:
            targets += [Target(*span, messages[answer.message].weight) for span in answer.spans]
            starts.update(first for first, _ in answer.spans)
            # A template's empty block, before an answer without reasoning, is left out of the answer as a full one is.
            empty = _NO_REASONING.match(text, *answer.spans[0])
            if found := answer.reasoning or (empty and empty.span()):
                reasoning.append((found[0], _behind(text, found[1])))
        return Draft(text, targets, reasoning, start, True, texts(example), sorted(starts))

    def _first_target(self, example: Conversation) -> int:
        """Index of the message from which on assistant turns are trained."""
        if self.mask == "assistant":
            return 0
        if self.mask == "completion" and example.prompt_turns is not None:
            return example.prompt_turns
        return max((number for number, turn in enumerate(example.messages) if turn.role == "assistant"), default=0)


def _behind(text: str, end: int) -> int:
    """Where an answer goes on behind its reasoning: a space belongs to the token of the word that follows."""
    return end - text.endswith(" ", 0, end)


def texts(example: Example) -> list[str]:
    """The texts of the row that an example was made of."""
    if isinstance(example, Conversation):
        return [turn.content for turn in example.messages]
    return [example.text] if isinstance(example, Text) else [example.prompt, example.completion]
