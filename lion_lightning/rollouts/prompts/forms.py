"""Reading the prompt of a raw row, of any form of pairs or of SFT rows, or without an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lion_lightning.data.formats.answers.forms import PAIRS, RANKED, Read
from lion_lightning.data.formats.columns import Form, Forms, Row, read_row
from lion_lightning.data.formats.pairing import PromptAnswer
from lion_lightning.data.formats.sft import (
    ASKED,
    CHAT,
    FORMS,
    Completion,
    Conversation,
    conversation,
    read_request,
    read_settings,
    with_system,
)
from lion_lightning.data.formats.turns import Message, read_text, read_turns


def recognize_prompt(row: Row, columns: Mapping[str, str] | None = None) -> PromptAnswer | None:
    """Read the prompt of a raw row, followed by the row's own answer if it has one.

    Known are all forms of preference pairs (the answer is the chosen one) and of SFT rows but plain ``text``; and,
    without an answer, ``messages`` or ``conversations`` that end before it, ``prompt`` (messages, or plain text that is
    continued without a template), ``question`` and ``instruction`` (a user's turn). Other columns are kept for
    judges, except those that change the prompt.

    Args:
        row: The raw row, keys to values.
        columns: The row's own name for a known column, e.g. ``{"question": "prompt"}`` for a chat.

    Returns:
        A conversation with ``prompt_turns`` set, or a completion; the answer is missing or empty if there is none.
        None for a pair that would be left out.

    Raises:
        ValueError: The row has no known form, breaks the rules of its form, or has a column that changes what is asked
            and that the form has no place for.
    """
    prompt = read_row(row, columns or {}, PROMPT_FORMS, only_prompt=True)
    if isinstance(prompt, Conversation) and any(turn.prefilled for turn in prompt.messages):
        raise ValueError(
            "the row holds the beginning of the answer (`prefix`), and sampling starts answers from nothing; take it "
            "out of the row (with a `transform`)"
        )
    return prompt


def _preferred(parse: Callable[..., Read], row: Row) -> PromptAnswer | None:
    read = parse(row)
    if read is None:
        return None
    best = 0 if read.pairs else read.values.index(max(read.values))
    return read.answers[best]


def _with_answer(parse: Callable[..., Any], row: Row) -> PromptAnswer | None:
    example: PromptAnswer = parse(row)  # its last turn is the answer, unless it says otherwise
    if isinstance(example, Completion) or example.prompt_turns is not None:
        return example
    return example._replace(prompt_turns=len(example.messages) - 1)


def _turns(column: str, row: Row) -> PromptAnswer:
    turns = with_system(row, read_turns(row[column], column))
    prompt = turns[:-1] if turns[-1].role == "assistant" else turns
    conversation((*prompt, Message("assistant", "?")))  # raises if the roles are out of order
    return Conversation(turns, len(prompt), **read_settings(row))


def _prompt(row: Row) -> PromptAnswer:
    if isinstance(row["prompt"], str):
        return Completion(read_text(row["prompt"], "prompt"), "")
    return _turns("prompt", row)


def _request(column: str, row: Row) -> PromptAnswer:
    turns = with_system(row, read_request(row, column))
    return Conversation(turns, len(turns), **read_settings(row))


_OTHER_FORMS = ({"messages"}, {"conversations"}, {"text"})
PROMPT_FORMS: Forms[PromptAnswer | None] = Forms(
    (
        *(Form(form.required, form.optional, partial(_preferred, form.parse)) for form in (*PAIRS, *RANKED)),
        Form(("messages",), CHAT, partial(_turns, "messages")),
        Form(("conversations",), CHAT, partial(_turns, "conversations")),
        *(
            Form(form.required, form.optional, partial(_with_answer, form.parse))
            for form in FORMS
            if set(form.required) not in _OTHER_FORMS
        ),
        Form(("prompt",), CHAT, _prompt),
        Form(("question",), ASKED, partial(_request, "question")),
        Form(("instruction",), ASKED, partial(_request, "instruction")),
    )
)
