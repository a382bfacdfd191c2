"""The forms of rows with answers: a pair, ranked answers, or one answer with a label."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from numbers import Real
from typing import Any

from lion_lightning.data.formats.answers.labels import read_label
from lion_lightning.data.formats.answers.prompts import PROMPTS, Reader, shared_prompt
from lion_lightning.data.formats.columns import Fields, Form, Forms, Refusal, Row
from lion_lightning.data.formats.pairing import PromptAnswers
from lion_lightning.data.formats.sft import CHAT, conversation, read_settings, up_to_last_answer, with_system
from lion_lightning.data.formats.turns import read_turns
from lion_lightning.data.sources.json_text import parse_messages, read_list

Read = PromptAnswers | None
"""The answers of a row; None where the row is left out."""


# --- a function per form


def _pair(reader: Reader, row: Fields) -> Read:
    """Two answers with their scores, if there are any, and their pair."""
    given = [name for name in _SCORES if name in row]
    if len(given) == 1:
        raise ValueError(f"only {given[0]} is given; give the scores of both answers or of none (with a `transform`)")
    values = tuple(_score(row[name], name) for name in given) or (math.nan, math.nan)
    answers = reader(row, {"chosen": row["chosen"], "rejected": row["rejected"]})
    return PromptAnswers(tuple(answers), values, ((0, 1),)) if answers else None


def _ranked(scores: str, reader: Reader, row: Fields) -> Read:
    """Any number of answers with their scores, and no pair. The best rank is the lowest: its score is ``-rank``."""
    raw, given = read_list(row["answers"], "answers"), read_list(row[scores], scores)
    if not raw:
        raise ValueError("answers is empty; skip the row with a `transform`")
    if len(raw) != len(given):
        raise ValueError(f"answers has {len(raw)} entries and {scores} {len(given)}; give each answer its score")
    sign = -1 if scores == "ranks" else 1
    values, named = [], {}
    for index, (answer, score) in enumerate(zip(raw, given, strict=True)):
        values.append(sign * _score(score, f"{scores}[{index}]"))
        named[f"answers[{index}]"] = parse_messages(answer, f"answers[{index}]")
    answers = reader(row, named)
    return PromptAnswers(tuple(answers), tuple(values)) if answers else None


def _labeled(answer: str, reader: Reader, row: Fields) -> Read:
    """One answer, whose value is its label."""
    answers = reader(row, {answer: row[answer]})
    return PromptAnswers(tuple(answers), (read_label(row),)) if answers else None


def _labeled_conversation(column: str, row: Fields) -> Read:
    """A conversation whose last answer has a label; what stands before it is the prompt."""
    turns = up_to_last_answer(with_system(row, read_turns(row[column], column)))
    answer = conversation(turns, len(turns) - 1, **read_settings(row))
    if len(turns) < 2:
        raise ValueError("no message stands before the answer to be the prompt; give the row one")
    return PromptAnswers((answer,), (read_label(row),))


def _score(value: Any, name: str) -> float:
    """A score; CSV files have it as text."""
    if not isinstance(value, Real | str):
        raise ValueError(f"{name} is {type(value).__name__}, not a number; convert it with a `transform`")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{name} is {str(value)[:40]!r}, not a number; convert it with a `transform`") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}, not a finite number; skip the row with a `transform`")
    return number


# --- the forms, by their columns

_SCORES = ("score_chosen", "score_rejected")
_SINGLE = {
    "prompt": ("completion", "response"),
    "question": ("answer", "response"),
    "instruction": ("output", "response"),
    "messages": ("completion", "response"),
    "conversations": ("completion", "response"),
}
"""Columns of one answer, by the column of its prompt."""


def _pair_forms() -> Forms[Read]:
    forms: list[Form[Read]] = []
    for prompt, (optional, reader) in PROMPTS.items():
        forms.append(Form((prompt, "chosen", "rejected"), (*optional, *_SCORES), partial(_pair, reader)))
    return Forms([*forms, Form(("chosen", "rejected"), (*CHAT, *_SCORES), partial(_pair, shared_prompt))])


def _ranked_forms(scores: str) -> list[Form[Read]]:
    forms: list[Form[Read]] = []
    for prompt, (optional, reader) in PROMPTS.items():
        forms.append(Form((prompt, "answers", scores), optional, partial(_ranked, scores, reader)))
    return forms


def _labeled_forms() -> Forms[Read]:
    forms: list[Form[Read]] = []
    for prompt, (optional, reader) in PROMPTS.items():
        for answer in _SINGLE[prompt]:
            forms.append(Form((prompt, answer, "label"), optional, partial(_labeled, answer, reader)))
    for column in ("messages", "conversations"):
        forms.append(Form((column, "label"), CHAT, partial(_labeled_conversation, column)))
    return Forms(forms)


PAIRS = _pair_forms()
RANKED: Forms[Read] = Forms([*_ranked_forms("scores"), *_ranked_forms("ranks")])
LABELED = _labeled_forms()


def refuse_single(need: str) -> list[Refusal]:
    """Refusals of rows with one answer, with a label and without; ``need`` says why one is not enough."""
    line = (
        f"the row has one answer, and {need} two: with a label UnpairedDataModule takes it (for KTOModule), without "
        "one SFTDataModule (for SFTModule)"
    )
    labeled = [form.required for form in LABELED]
    return [Refusal(columns, line) for columns in (*labeled, *(required[:-1] for required in labeled), ("text",))]


def is_pair(row: Row, columns: Mapping[str, str]) -> bool:
    """True if a raw row has a chosen and a rejected answer, under the names that ``columns`` maps them to."""
    return all(row.get(columns.get(name, name)) is not None for name in ("chosen", "rejected"))
