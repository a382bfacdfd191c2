"""Preference rows: how a raw row is recognized as a pair, or as ranked answers that become pairs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

from lion_lightning.data.formats.answers.forms import PAIRS, RANKED, Read, is_pair, refuse_single
from lion_lightning.data.formats.answers.lists import find_lists
from lion_lightning.data.formats.columns import Forms, Row, read_row
from lion_lightning.data.formats.pairing import Pairing, PromptAnswers
from lion_lightning.data.reports.row_messages import add_message

FORMS: Forms[Read] = Forms([*PAIRS, *RANKED])
"""The forms of preference rows; of several that fit, the first is taken."""

_REFUSED = refuse_single("pairs need")


def recognize_preferences(row: Row, columns: Mapping[str, str] | None, pairing: Pairing) -> list[PromptAnswers]:
    r"""Turn a raw row into a prompt with answers and their pairs; nothing where the row is left out.

    Forms are told apart by the keys of the row (a key whose value is null counts as absent); of several that fit, the
    one that uses most of ``columns`` is taken, then the first in this order:

    - ``prompt``, ``chosen``, ``rejected``. Three texts are plain text without a template. Otherwise it is a chat: a
      text as prompt is the user turn, a text as answer to messages is the assistant turn. Answers may be conversations
      that begin with the prompt, which the prompt column then only repeats (UltraFeedback).
    - ``question`` or ``instruction`` (with its ``input`` and ``history``), ``chosen``, ``rejected``: a chat, also where
      all of them are text.
    - ``messages`` or ``conversations``, ``chosen``, ``rejected``: a chat; the messages are the prompt, or the chosen
      conversation once more.
    - ``chosen``, ``rejected``: the prompt is what they share. Of conversations those are the first messages. Of texts
      it is what stands before the last ``\n\nAssistant:`` that both have, that included; without one it ends with the
      last full word that both have, and the white space behind it belongs to the answers. Dialogues that differ before
      the last answer are left out: a user's words are no answer.
    - any of these prompts with ``answers`` and ``scores`` or ``ranks``: ranked answers, of any kind above, that
      ``pairing`` pairs; those that are in no pair are left away. Other names and objects with scores:
      :mod:`~lion_lightning.data.formats.answers.lists`.

    A ``system`` column becomes the system turn of a chat, ``tools`` go to its template. ``score_chosen`` and
    ``score_rejected`` are the answers' values. Equal answers, equal scores and answers without text are no error here.

    Args:
        row: The raw row, keys to values.
        columns: The row's own name for a known column, e.g. ``{"answers": "completions"}``.
        pairing: How ranked answers become pairs.

    Raises:
        ValueError: The row has no known form, or is not valid in its form. The message is one line without the row's
            file and line; the caller puts ``path:line`` before it.
    """
    columns = columns or {}
    found: dict[str, str] = {}
    if "answers" in columns or not is_pair(row, columns):
        row, found = find_lists(row, columns)
    read = read_row(row, columns, FORMS, found, _REFUSED)
    if read is None or read.pairs:
        return [read] if read else []
    if len(read.answers) < 2:
        raise ValueError("a pair needs two answers, and answers has 1; skip the row with a `transform`")
    # Draws follow from the content, and not from the row's place.
    content = json.dumps(read.answers, sort_keys=True, default=str)
    pairs = pairing.pairs(list(read.values), content)
    _require_pairs(pairs, len(read.answers), pairing)
    if not pairs:
        add_message("left out", f"{type(pairing).__name__} makes no pair of the answers")
    return [read.in_pairs(pairs)] if pairs else []


def _require_pairs(pairs: list[tuple[int, int]], answers: int, pairing: Pairing) -> None:
    """Check what a user's pairing returns."""
    for chosen, rejected in pairs:
        if chosen == rejected or not {chosen, rejected} <= {*range(answers)}:
            raise ValueError(
                f"{type(pairing).__name__} pairs the answers {chosen} and {rejected} of {answers}; return two "
                f"different positions, each from 0 to {answers - 1}"
            )
    for (chosen, rejected), times in Counter(pairs).items():
        if times > 1:
            raise ValueError(
                f"{type(pairing).__name__} pairs the answers {chosen} and {rejected} {times} times; return a pair once"
            )
