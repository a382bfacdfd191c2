"""The row formats that preference data comes in, and how a raw row is recognised as one of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from numbers import Real
from typing import Any

from lion_lightning.data.formats import (
    Completion,
    Conversation,
    Form,
    Message,
    Row,
    conversation,
    read_system,
    read_text,
    read_tools,
    read_turns,
    select,
)
from lion_lightning.data.preferences import Pairing, Preference, Whole


def recognise_preferences(row: Row, columns: Mapping[str, str] | None, pairing: Pairing) -> list[Preference]:
    r"""Turn a raw row into preference pairs.

    Forms are told apart by the keys of the row (a key whose value is null counts as absent); of several that fit, the
    one that uses most of ``columns`` is taken, then the first in this order:

    - ``prompt``, ``chosen``, ``rejected``. Three texts are plain text without a template. Otherwise it is a chat: a
      text as prompt is the user turn, a text as answer to messages is the assistant turn. Answers may be whole
      conversations that hold the prompt, which the prompt column then only repeats (UltraFeedback).
    - ``question``, ``chosen``, ``rejected``: a chat, also where all of them are text.
    - ``prompt`` or ``question``, ``answers``, ``scores``: ranked answers, of any kind above, that ``pairing`` pairs.
    - ``chosen``, ``rejected``: whole, the prompt is what they share. Of conversations those are the first messages. Of
      texts it is what stands before the last ``\n\nAssistant:`` that both have, that included; without one it ends
      with the last whole word that both have, and the white space behind it belongs to the answers.

    A ``system`` column becomes the system turn of a chat, ``tools`` go to its template. ``score_chosen`` and
    ``score_rejected`` give the margin. Equal answers, equal scores and answers without text are no error here.

    Args:
        row: The raw row, keys to values.
        columns: The row's own name for a known column, e.g. ``{"answers": "completions"}``.
        pairing: How ranked answers become pairs.

    Raises:
        ValueError: The row has no known form, or breaks the rules of its form. The message is one line without the
            row's place; the caller puts ``path:line`` before it.
    """
    parse, named = select(row, columns or {}, FORMS)
    return parse(named, pairing)


Answers = Mapping[str, Any]
"""Raw answers by their place in the row, which errors name."""
Reader = Callable[[Row, Answers], list[Whole]]
"""Joins the prompt of a row to each of its answers."""


# --- from answers to pairs


def _pair(reader: Reader, row: Row, pairing: Pairing) -> list[Preference]:
    chosen, rejected = reader(row, {"chosen": row["chosen"], "rejected": row["rejected"]})
    return [Preference(chosen, rejected, _margin(row))]


def _ranked(reader: Reader, row: Row, pairing: Pairing) -> list[Preference]:
    answers, scores = _list(row["answers"], "answers"), _list(row["scores"], "scores")
    if len(answers) != len(scores):
        raise ValueError(f"answers has {len(answers)} entries and scores {len(scores)}; give each answer its score")
    if len(answers) < 2:
        raise ValueError(f"a pair needs two answers, and answers has {len(answers)}; skip the row with a `transform`")
    values = [_number(score, f"scores[{place}]") for place, score in enumerate(scores)]
    wholes = reader(row, {f"answers[{place}]": answer for place, answer in enumerate(answers)})
    key = json.dumps(wholes, sort_keys=True, default=str)
    return [Preference(wholes[i], wholes[j], values[i] - values[j]) for i, j in pairing.pairs(values, key)]


def _margin(row: Row) -> float | None:
    given = [side for side in ("score_chosen", "score_rejected") if side in row]
    if not given:
        return None
    if len(given) == 1:
        raise ValueError(f"only {given[0]} is given; give the scores of both sides or of none (with a `transform`)")
    return _number(row["score_chosen"], "score_chosen") - _number(row["score_rejected"], "score_rejected")


def _list(value: Any, name: str) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{name} is {type(value).__name__}, not a list; convert it with a `transform`")
    return value


def _number(value: Any, name: str) -> float:
    if not isinstance(value, Real):
        raise ValueError(f"{name} is {type(value).__name__}, not a number; convert it with a `transform`")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {float(value)}, not a finite number; skip the row with a `transform`")
    return float(value)


# --- one reader for each way to give the prompt


def _asked(row: Row, answers: Answers) -> list[Whole]:
    return _chats(row, (Message("user", read_text(row["question"], "question")),), answers)


def _prompted(row: Row, answers: Answers) -> list[Whole]:
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        return _chats(row, read_turns(prompt, "prompt"), answers)
    if _are_text(answers):
        return _texts(row, prompt, answers)
    asked = Message("user", read_text(prompt, "prompt"))
    if all(_answer_turns(value, name)[0].role == "assistant" for name, value in answers.items()):
        return _chats(row, (asked,), answers)
    wholes = _implied(row, answers)
    _check_repeated(asked.content, wholes[0])
    return wholes


def _implied(row: Row, answers: Answers) -> list[Whole]:
    if _are_text(answers):
        texts = [read_text(value, name) for name, value in answers.items()]
        cut = _text_cut(texts)
        return _texts(row, texts[0][:cut], {name: value[cut:] for name, value in answers.items()})
    sides = [_answer_turns(value, name) for name, value in answers.items()]
    return _chats(row, sides[0][: _turn_cut(sides)], answers)


def _are_text(answers: Answers) -> bool:
    """Whether the answers are text, rather than messages."""
    text = [name for name, value in answers.items() if isinstance(value, str)]
    other = [name for name, value in answers.items() if not isinstance(value, str)]
    if text and other:
        raise ValueError(f"{text[0]} is text and {other[0]} is not; make all of them text or all lists of messages")
    return bool(text)


def _texts(row: Row, prompt: str, answers: Answers) -> list[Whole]:
    if beside := [name for name in ("system", "tools") if row.get(name)]:
        raise ValueError(
            f"{beside[0]} stands beside plain text, which has no template to show it; make the prompt a list of "
            'messages, or a chat\'s question with `columns: {"question": "prompt"}`'
        )
    start = read_text(prompt, "prompt", may_be_empty=True)
    return [Completion(start, read_text(value, name, may_be_empty=True)) for name, value in answers.items()]


def _chats(row: Row, prompt: tuple[Message, ...], answers: Answers) -> list[Whole]:
    start, tools = read_system(row) + prompt, read_tools(row)
    wholes: list[Whole] = []
    for name, value in answers.items():
        answer = _after(prompt, _answer_turns(value, name), name)
        wholes.append(conversation(start + answer, len(start), tools))
    return wholes


def _after(prompt: tuple[Message, ...], turns: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    """The answer alone, of one that may be given as a whole conversation."""
    answer = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
    roles = [turn.role for turn in answer] or ["none"]
    if {roles[0], roles[-1]} != {"assistant"}:
        raise ValueError(
            f"{name} holds, after the prompt, the turns {', '.join(roles)}; an answer starts and ends with an "
            "assistant turn, and a whole conversation begins with all of the prompt: mend the row with a `transform`"
        )
    return answer


def _answer_turns(value: Any, name: str) -> tuple[Message, ...]:
    """Turns of an answer: a text or a lone message is one assistant turn."""
    if isinstance(value, str):
        return (Message("assistant", read_text(value, name, may_be_empty=True)),)
    return read_turns([value] if isinstance(value, Mapping) else value, name, may_be_empty=True)


# --- where a prompt that is not given by itself ends


def _shared(sequences: Sequence[Sequence[Any]]) -> int:
    """Number of items that all sequences begin with."""
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in takewhile(lambda items: all(item == items[0] for item in items), columns))


def _turn_cut(sides: Sequence[tuple[Message, ...]]) -> int:
    """Number of messages that are prompt: those shared, less the answer where one side holds nothing else."""
    shared = _shared(sides)
    if shared == min(map(len, sides)):
        answers = (place for place in range(shared - 1, 0, -1) if sides[0][place].role == "assistant")
        shared = next(answers, 0)
    if shared == 0:
        raise ValueError("the sides share no first message to be the prompt; give the row a prompt column")
    if any(turns[shared].role != "assistant" for turns in sides):
        raise ValueError(
            f"the prompt differs between the sides, from message {shared} on; all messages before the answers must be "
            "the same: mend the row with a `transform`"
        )
    return shared


def _text_cut(texts: Sequence[str]) -> int:
    """Number of characters that are prompt. White space stays with the answer: most tokenizers join it to the word."""
    shared = texts[0][: _shared(texts)]
    marks = [mark.end() for mark in _ANSWER_MARK.finditer(shared)]
    cuts = marks or [gap.start() for gap in re.finditer(r"\s+", shared)]
    for cut in reversed(cuts):
        if cut > 0 and all(text[cut:].strip() for text in texts):
            return cut
    raise ValueError("the texts share no first words to be the prompt; give the row a prompt column")


_ANSWER_MARK = re.compile("\n\nAssistant:")


def _check_repeated(prompt: str, whole: Whole) -> None:
    """Make sure that a prompt beside whole conversations is a user turn of the prompt in them."""
    turns = whole.messages[: whole.prompt_turns] if isinstance(whole, Conversation) else ()
    if prompt.strip() not in [turn.content.strip() for turn in turns if turn.role == "user"]:
        raise ValueError(
            "prompt is none of the user turns that the answers begin with, so it is not clear what the prompt is; "
            "mend the row, or take its prompt away, with a `transform`"
        )


_SCORES = ("score_chosen", "score_rejected")
FORMS: tuple[Form[Callable[[Row, Pairing], list[Preference]]], ...] = (
    Form(("prompt", "chosen", "rejected"), ("system", "tools", *_SCORES), partial(_pair, _prompted)),
    Form(("question", "chosen", "rejected"), ("system", "tools", *_SCORES), partial(_pair, _asked)),
    Form(("prompt", "answers", "scores"), ("system", "tools"), partial(_ranked, _prompted)),
    Form(("question", "answers", "scores"), ("system", "tools"), partial(_ranked, _asked)),
    Form(("chosen", "rejected"), ("system", "tools", *_SCORES), partial(_pair, _implied)),
)
