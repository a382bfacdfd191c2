"""Unpaired rows: how a raw row is recognized as an answer with a label."""

from __future__ import annotations

from collections.abc import Mapping

from lion_lightning.data.formats.answers.forms import LABELED, PAIRS, Read, is_pair
from lion_lightning.data.formats.answers.labels import find_label
from lion_lightning.data.formats.column_table import ANSWER_LISTS
from lion_lightning.data.formats.columns import Forms, Refusal, Row, read_row
from lion_lightning.data.formats.pairing import PromptAnswers

FORMS: Forms[Read] = Forms([*PAIRS, *LABELED])
"""The forms of rows with labels; of several that fit, the first is taken."""

_RANKED = (
    "the row has ranked answers, and their scores are no labels: GroupDataModule takes it (for GroupModule), or, as "
    "pairs, PreferenceDataModule (for DPOModule); for labels make a row of each answer with a `transform`"
)
_REFUSED = [Refusal((name,), _RANKED) for name in (*ANSWER_LISTS, "scores", "ranks")]


def recognize_labeled(row: Row, columns: Mapping[str, str] | None = None) -> list[PromptAnswers]:
    """Turn a raw row into a prompt with an answer whose value is 1 (wanted) or 0; nothing where the row is left out.

    Known are, each with ``label``: ``prompt`` and ``completion`` (TRL's unpaired form: texts without a template, or
    messages), ``question`` and ``answer``, ``instruction`` and ``output``, ``messages`` or ``conversations`` and
    ``completion``, any of these with ``response``, and ``messages`` or ``conversations`` alone, whose last answer is
    labeled. Where there is no ``label``, the only column that says yes or no about an answer is taken: ``thumbs_up``,
    ``feedback: up``, ``is_correct``; of ``toxic``, ``thumbs_down`` and their like the opposite.

    Of a preference row the chosen answer has the label 1, the rejected 0; scores are not looked at.

    Args:
        row: The raw row, keys to values.
        columns: The row's own name for a known column, e.g. ``{"label": "thumbs"}``.

    Raises:
        ValueError: The row has no known form, or is not valid in its form; see
            :func:`~lion_lightning.data.formats.answers.preference.recognize_preferences`.
    """
    columns = columns or {}
    found = {} if is_pair(row, columns) else find_label(row, columns)
    read = read_row(row, columns, FORMS, found, _REFUSED)
    if read is None:
        return []
    return [PromptAnswers(read.answers, (1.0, 0.0)) if read.pairs else read]
