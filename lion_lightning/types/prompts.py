"""Prompts for a policy, and its sampled answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Prompt:
    """A prompt for a policy, with all that a judge may want to know about it.

    Attributes:
        text: What the model is given: turns under the chat template, up to where the answer begins, or plain text.
        input_ids: Tokens of the text.
        messages: The turns, each with ``role`` and ``content``; empty where the prompt is plain text.
        row: The raw row that it was read from: the right answer for a verifier, say.
        original: The row's own answer (of a preference pair the chosen one), if it has one.
        where: Place of the row, ``path:line``; errors name it.
        tools: Definitions of the functions that the model may call; like ``template_kwargs`` for whoever renders the
            turns again, and not kept in a round's file.
        template_kwargs: Variables of the chat template that the row sets.
    """

    text: str
    input_ids: tuple[int, ...] = ()
    messages: tuple[dict[str, Any], ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict)
    original: str | None = None
    where: str = ""
    tools: tuple[Any, ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The last question: the last turn's content, or the plain text."""
        return str(self.messages[-1]["content"]) if self.messages else self.text


class Answer(NamedTuple):
    """One sampled answer.

    Attributes:
        text: What was said, without the token that ends the turn.
        finish_reason: ``stop`` if the model ended it, ``length`` if it was cut off, ``original`` if the row brought it.
        token_ids: The tokens that were sampled, the one that ends the turn included; None where that is not known or
            does not fit the text (a stop string), and the text is tokenized instead.
        model: Name of the model that answered, where several do; empty for the only one.
    """

    text: str
    finish_reason: str = "stop"
    token_ids: tuple[int, ...] | None = None
    model: str = ""
