"""The row formats of supervised fine-tuning, and how a raw row is recognized as one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from lion_lightning.data.formats.columns import Form, Forms, Refusal, Row, read_row
from lion_lightning.data.formats.tool_calls import read_tools, without_nulls
from lion_lightning.data.formats.turns import Message, continued, read_dialogue, read_text, read_turns
from lion_lightning.data.reports.row_messages import add_message, add_warning
from lion_lightning.data.sources.json_text import read_json, read_list


class Conversation(NamedTuple):
    """Turns that a chat template renders.

    Attributes:
        messages: The turns, in order.
        prompt_turns: How many leading messages are prompt when only the completion is trained; None for all that stand
            before the last assistant message.
        tools: Tool definitions (JSON schemas) handed to the chat template, or None.
        chat_template_kwargs: More that is handed to it (``{"enable_thinking": False}``), or None.
    """

    messages: tuple[Message, ...]
    prompt_turns: int | None = None
    tools: tuple[Any, ...] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class Completion(NamedTuple):
    """Plain text in two parts, without a chat template: under a mask only the completion is trained."""

    prompt: str
    completion: str


class Text(NamedTuple):
    """Plain text, all of it trained."""

    text: str


Example = Conversation | Completion | Text

CHAT = ("system", "tools", "functions", "chat_template_kwargs", "continue_final_message")
"""Optional columns of every chat."""

ASKED = ("input", "history", *CHAT)
"""Optional columns of an ``instruction`` or a ``question``."""


def recognize(row: Row, columns: Mapping[str, str] | None = None) -> Example:
    """Turn a raw row into the form that it is written in.

    Forms are told apart by the keys of the row (a key whose value is null counts as absent): ``messages``, ShareGPT
    ``conversations``, Alpaca ``instruction``/``input``/``output``, ``prompt``/``completion`` (both text, or both lists
    of messages), ``question``/``answer``, ``text``; ``response`` is an answer to any of these. Of several that fit,
    the one that uses most of ``columns`` is taken, then the first in that order; where none does, the only column that
    holds messages. In every chat a ``system`` column becomes the system turn; ``tools`` (or ``functions``) and
    ``chat_template_kwargs`` go to the template. ``input`` stands behind an instruction or question, the rounds of
    ``history`` before it. Turns and lists may be JSON text. What becomes of any other column:
    :mod:`lion_lightning.data.formats.unused_columns`.

    An assistant turn may open a conversation: conversations cut out of longer ones, as ShareGPT's are, often start so.

    Args:
        row: The raw row, keys to values.
        columns: The row's own name for a known column, e.g. ``{"prompt": "question", "completion": "answer"}``.

    Raises:
        ValueError: The row has no known form, or is not valid in its form. The message is one line without the
            row's file and line; the caller puts ``path:line`` before it.
    """
    return read_row(row, columns or {}, FORMS, refused=_REFUSED)


_PAIR = (
    "the row has a pair of answers: PreferenceDataModule takes it (for DPOModule); to train the better one alone, say "
    "with `columns` which column `chosen` is"
)
_RANKED = (
    "the row has ranked answers: PreferenceDataModule takes it (for DPOModule), or GroupDataModule (for GroupModule); "
    "to train the best alone, take it out of the list with a `transform`"
)
_REFUSED = [
    Refusal(("chosen", "rejected"), _PAIR),
    Refusal(("answers", "scores"), _RANKED),
    Refusal(("answers", "ranks"), _RANKED),
]


# --- a function per form


def _messages(column: str, row: Row) -> Example:
    return conversation(up_to_last_answer(with_system(row, read_turns(row[column], column))), **read_settings(row))


def up_to_last_answer(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """A conversation without what stands behind its last answer, where nothing is left to be trained."""
    if turns[-1].role == "assistant" and not turns[-1].is_unfinished:
        return turns
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant" and not turn.is_unfinished]
    if not answers:
        return turns
    add_message("changed", "turns behind the last answer are left out, since nothing of them is trained")
    return turns[: answers[-1] + 1]


def _exchange(request: str, answer: str, row: Row) -> Example:
    turns = (*read_request(row, request), Message("assistant", read_text(row[answer], answer)))
    return conversation(with_system(row, turns), **read_settings(row))


def _prompt_completion(answer: str, row: Row) -> Example:
    prompt, completion = row["prompt"], row[answer]
    if isinstance(prompt, str) and isinstance(completion, str):
        warn_of_repeated_prompt(prompt, completion)
        return Completion(read_text(prompt, "prompt", may_be_empty=True), read_text(completion, answer))
    if isinstance(prompt, str) or isinstance(completion, str):
        raise ValueError(f"prompt and {answer} differ in kind; make both of them text or both lists of messages")
    turns = with_system(row, read_turns(prompt, "prompt"))
    answered = up_to_last_answer(continued(turns, read_turns(completion, answer)))
    return conversation(answered, len(turns) - turns[-1].is_unfinished, **read_settings(row))


def _text(row: Row) -> Example:
    text = read_text(row["text"], "text")
    if read_dialogue(text):
        add_warning(
            "texts are dialogues of Human and Assistant, and all of their words are trained; `format: chat` on the "
            "source makes turns of them, of which the Assistant's are trained"
        )
    return Text(text)


def warn_of_repeated_prompt(prompt: str, *answers: str) -> None:
    """Warn of plain-text answers that all begin with a prompt of more than three words, which would be there twice."""
    if len(prompt.split()) > 3 and all(answer.lstrip().startswith(prompt.strip()) for answer in answers):
        add_warning(
            "the answer begins with all of the prompt, which so stands there twice, and is trained; if the answer is "
            "prompt and answer in one, cut the prompt off with a `transform`"
        )


FORMS: Forms[Example] = Forms(
    (
        Form(("messages",), CHAT, partial(_messages, "messages")),
        Form(("conversations",), CHAT, partial(_messages, "conversations")),
        Form(("instruction", "output"), ASKED, partial(_exchange, "instruction", "output")),
        Form(("prompt", "completion"), CHAT, partial(_prompt_completion, "completion")),
        Form(("question", "answer"), ASKED, partial(_exchange, "question", "answer")),
        Form(("text",), (), _text),
        Form(("instruction", "response"), ASKED, partial(_exchange, "instruction", "response")),
        Form(("question", "response"), ASKED, partial(_exchange, "question", "response")),
        Form(("prompt", "response"), CHAT, partial(_prompt_completion, "response")),
    )
)


# --- turns

_FOLLOWERS = {
    "": {"system", "user", "assistant"},
    "system": {"user", "assistant"},
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"tool", "assistant"},
}


def conversation(
    messages: tuple[Message, ...],
    prompt_turns: int | None = None,
    tools: tuple[Any, ...] | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> Conversation:
    """Make a conversation of messages whose roles come in order.

    Raises:
        ValueError: They do not, or no assistant turn stands behind the prompt.
    """
    before = ""
    for number, message in enumerate(messages):
        if message.role not in _FOLLOWERS[before]:
            place = f"after {before}" if before else "and first"
            begun = message.role == before == "assistant" and number == prompt_turns
            raise ValueError(
                f"roles out of order: message {number} is {message.role} {place}; a system turn may come first, then "
                "user and assistant alternate, tool turns follow assistant turns; fix the row with a `transform`"
                + (", or give the prompt's last message `prefix: true` if the answer continues it" if begun else "")
            )
        if message.prefilled and message.is_unfinished and number < len(messages) - 1:
            raise ValueError(
                f"message {number} is the beginning of an answer, and others follow; take its mark away, or give the "
                "whole answer (with a `transform`)"
            )
        before = message.role
    if not any(turn.role == "assistant" and not turn.is_unfinished for turn in messages[prompt_turns or 0 :]):
        raise ValueError("no assistant turn to learn from; remove the row or give it an answer")
    return Conversation(messages, prompt_turns, tools, chat_template_kwargs)


def read_settings(row: Row) -> dict[str, Any]:
    """Arguments of the chat template, in addition to the turns: tools, and the ``chat_template_kwargs`` of the row."""
    more = row.get("chat_template_kwargs")
    more = read_json(more, "chat_template_kwargs") if isinstance(more, str) else more
    if more is not None and not isinstance(more, Mapping):
        raise ValueError(f"chat_template_kwargs is {type(more).__name__}, not an object of settings; fix the row")
    tools = read_tools(row)
    functions = read_tools({"tools": row.get("functions")})  # older sets call them so
    if tools and functions and tools != functions:
        raise ValueError("the columns 'tools' and 'functions' differ; keep one of them, with a `transform`")
    return {"tools": tools or functions, "chat_template_kwargs": without_nulls(more) or None}


def with_system(row: Row, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """Put the row's ``system`` column before its turns, which may already begin with the same text.

    The last turn becomes the beginning of an answer where ``continue_final_message`` says so.
    """
    if turns and turns[-1].role == "assistant" and row.get("continue_final_message") in (True, "true", "True", 1):
        turns = (*turns[:-1], turns[-1]._replace(prefilled=len(turns[-1].content)))
    content = read_text(row.get("system", ""), "system", may_be_empty=True)
    own = turns[0].content.strip() if turns and turns[0].role == "system" else None
    if content.strip() in ("", own):
        return turns
    if own is not None:
        raise ValueError("the column 'system' and the first message differ; keep one of them, with a `transform`")
    return (Message("system", content), *turns)


def read_request(row: Row, column: str) -> tuple[Message, ...]:
    """A user turn: a request with its ``input`` behind it, after the rounds of the row's ``history``.

    The history is a list of rounds ``[user, assistant]``, or of messages.
    """
    request = read_text(row[column], column)
    detail = read_text(row.get("input", ""), "input", may_be_empty=True)
    content = f"{request}\n\n{detail}" if detail.strip() else request
    rounds = read_list(row.get("history", ()), "history")
    if rounds and isinstance(rounds[0], Mapping):
        return (*read_turns(rounds, "history"), Message("user", content))
    turns: list[Message] = []
    for number, texts in enumerate(rounds):
        if isinstance(texts, str) or not isinstance(texts, Sequence) or len(texts) != 2:
            raise ValueError(f"history[{number}] is not a round of two texts, [user, assistant]; fix the row")
        for role, text in zip(("user", "assistant"), texts, strict=True):
            turns.append(Message(role, read_text(text, f"history[{number}] ({role})")))
    return (*turns, Message("user", content))
