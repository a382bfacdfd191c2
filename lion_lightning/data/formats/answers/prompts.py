"""Joining the prompt of a row to each of its answers: a reader for each way to give the prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from lion_lightning.data.formats.columns import Fields, Row
from lion_lightning.data.formats.pairing import PromptAnswer
from lion_lightning.data.formats.sft import (
    ASKED,
    CHAT,
    Completion,
    Conversation,
    conversation,
    read_request,
    read_settings,
    warn_of_repeated_prompt,
    with_system,
)
from lion_lightning.data.formats.turns import Message, continued, read_text, read_turns
from lion_lightning.data.formats.unused_columns import may_be_prompt, printable
from lion_lightning.data.reports.row_messages import add_message, add_warning
from lion_lightning.data.sources.json_text import parse_messages

Answers = Mapping[str, Any]
"""Raw answers by their position in the row, which errors name."""
Reader = Callable[[Row, Answers], list[PromptAnswer]]
"""Joins the prompt of a row to each of its answers; empty where the row is left out."""


def _requested(column: str, row: Row, answers: Answers) -> list[PromptAnswer]:
    return _chats(row, read_request(row, column), answers)


def _prompted(row: Row, answers: Answers) -> list[PromptAnswer]:
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        return _after_messages("prompt", row, answers)
    if _are_text(answers):
        warn_of_repeated_prompt(prompt, *answers.values())
        return _texts(prompt, answers)
    user = Message("user", read_text(prompt, "prompt"))
    if all(_answer_turns(value, name)[0].role == "assistant" for name, value in answers.items()):
        return _chats(row, (user,), answers)
    joined = shared_prompt(row, answers)  # the answers begin with the prompt; the column has to be a turn of it
    first = joined[0]
    turns = first.messages[: first.prompt_turns] if isinstance(first, Conversation) else ()
    if user.content.strip() not in [turn.content.strip() for turn in turns if turn.role == "user"]:
        raise ValueError(
            "prompt is none of the user turns that the answers begin with, so it is not clear what the prompt is; "
            "fix the row, or take its prompt away, with a `transform`"
        )
    return joined


def _after_messages(column: str, row: Row, answers: Answers) -> list[PromptAnswer]:
    """Messages as prompt; with an answer behind them, they repeat one of the conversations, or a prompt's answer."""
    turns = read_turns(row[column], column)
    given = [_answer_turns(value, name) for name, value in answers.items()]
    if turns in given and turns[-1].role == "assistant":
        return shared_prompt(row, answers)
    for answer in given:
        if answer[0].role == "assistant" and turns[-len(answer) :] == answer:
            turns = turns[: -len(answer)]
            break
    return _chats(row, turns, answers)


def shared_prompt(row: Row, answers: Answers) -> list[PromptAnswer]:
    r"""Join answers to the prompt that all of them begin with.

    Of conversations those are the first messages. Of texts it is what stands before the last ``\n\nAssistant:`` that
    all have, that included; without one it ends with the last full word that all have.
    """
    if not _are_text(answers):
        given = [_answer_turns(value, name) for name, value in answers.items()]
        return _chats(row, given[0][: _count_prompt_turns(given)], answers)
    texts = list(answers.values())
    if not all(text.strip() for text in texts):
        add_message("left out", "an answer has no text")
        return []
    shared = texts[0][: _shared(texts)]
    if any(map(_ASSISTANT_MARK.search, texts)):
        end = max((mark.end() for mark in _ASSISTANT_MARK.finditer(shared)), default=0)
        if not end:
            add_message("left out", _DIFFERENT_DIALOGUES)
            return []
    else:
        end = _guess_prompt_end(row, shared, texts)
    return _texts(shared[:end], {name: text[end:] for name, text in answers.items()})


def _guess_prompt_end(row: Row, shared: str, texts: Sequence[str]) -> int:
    """Length of the shared text up to its last word; an error where another column may well hold the prompt."""
    assert isinstance(row, Fields)  # as all forms are given it
    for name in row.unread:
        if not may_be_prompt(name, row.peek(name)):
            continue
        own, value = printable(row.own(name)), parse_messages(row.peek(name), name)
        kind = "question" if isinstance(value, str) else "messages"
        raise ValueError(
            f"is the column {own!r} the prompt? Say so with `columns: {{{kind}: {own}}}`, or make it one with a "
            f"`transform`; if not, give the source `ignore: [{own}]`"
        )
    add_warning("without a prompt column, the first words that both answers share are taken for the prompt")
    for gap in reversed(list(re.finditer(r"\s+", shared))):
        end = gap.start()  # white space stays with the answer: most tokenizers join it to the word
        if end > 0 and all(text[end:].strip() for text in texts):
            return end
    raise ValueError("the texts share no first words to be the prompt; give the row a prompt column")


def _are_text(answers: Answers) -> bool:
    """True if the answers are text, rather than messages."""
    text = [name for name, value in answers.items() if isinstance(value, str)]
    other = [name for name in answers if name not in text]
    if text and other:
        raise ValueError(f"{text[0]} is text and {other[0]} is not; make all of them text or all lists of messages")
    return bool(text)


def _texts(prompt: str, answers: Answers) -> list[PromptAnswer]:
    if _ASSISTANT_MARK.search(prompt) and any(map(_HUMAN_MARK.search, answers.values())):
        add_message("left out", _DIFFERENT_DIALOGUES)
        return []
    return [Completion(prompt, read_text(value, name, may_be_empty=True)) for name, value in answers.items()]


def _chats(row: Row, prompt: tuple[Message, ...], answers: Answers) -> list[PromptAnswer]:
    if not prompt:
        raise ValueError("no message stands before the answers to be the prompt; give the row one")
    start, settings = with_system(row, prompt), read_settings(row)
    joined: list[PromptAnswer] = []
    for name, value in answers.items():
        turns = _answer_turns(value, name)
        answer = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
        roles = [turn.role for turn in answer] or ["none"]
        if {roles[0], roles[-1]} != {"assistant"}:
            raise ValueError(
                f"{name} holds, after the prompt, the turns {', '.join(roles)}; an answer starts and ends with an "
                "assistant turn, and a conversation begins with all of the prompt: fix the row with a `transform`"
            )
        joined.append(conversation(continued(start, answer), len(start) - start[-1].is_unfinished, **settings))
    return joined


def _answer_turns(value: Any, name: str) -> tuple[Message, ...]:
    """Turns of an answer: a text or a lone message is one assistant turn."""
    if isinstance(value, str):
        return (Message("assistant", read_text(value, name, may_be_empty=True)),)
    return read_turns([value] if isinstance(value, Mapping) else value, name, may_be_empty=True)


# --- the end of a prompt that answers share


def _shared(sequences: Sequence[Sequence[Any]]) -> int:
    """Number of items that all sequences begin with."""
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in takewhile(lambda items: all(item == items[0] for item in items), columns))


def _count_prompt_turns(answers: Sequence[tuple[Message, ...]]) -> int:
    """Number of messages that are prompt: those shared, less the answer where one conversation holds nothing else."""
    shared = _shared(answers)
    if shared == min(map(len, answers)):
        assistants = (index for index in range(shared - 1, 0, -1) if answers[0][index].role == "assistant")
        shared = next(assistants, 0)
    if shared == 0:
        raise ValueError("the answers share no first message to be the prompt; give the row a prompt column")
    if any(turns[shared].role != "assistant" for turns in answers):
        raise ValueError(
            f"the prompt differs between the answers, from message {shared} on; all messages before the answers must "
            "be the same: fix the row with a `transform`"
        )
    return shared


_ASSISTANT_MARK = re.compile("\n\nAssistant:")
_HUMAN_MARK = re.compile("\n\nHuman:")
_DIFFERENT_DIALOGUES = "the dialogues differ before the last answer, so that a user's words would be trained"

PROMPTS: dict[str, tuple[tuple[str, ...], Reader]] = {
    "prompt": (CHAT, _prompted),
    "question": (ASKED, partial(_requested, "question")),
    "instruction": (ASKED, partial(_requested, "instruction")),
    "messages": (CHAT, partial(_after_messages, "messages")),
    "conversations": (CHAT, partial(_after_messages, "conversations")),
}
"""The column of the prompt: the columns that it may have next to it, and its reader."""
