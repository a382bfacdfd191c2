"""Rows for group objectives: how a raw row is recognized as a prompt with scored answers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lion_lightning.data.formats.answers.forms import PAIRS, RANKED, Read, refuse_single
from lion_lightning.data.formats.answers.lists import find_lists
from lion_lightning.data.formats.columns import Forms, Row, read_row
from lion_lightning.data.formats.pairing import PromptAnswers

FORMS: Forms[Read] = Forms([*RANKED, *PAIRS])
"""The forms of rows with groups; of several that fit, the first is taken."""

_REFUSED = refuse_single("a group needs")


def recognize_groups(row: Row, columns: Mapping[str, str] | None = None) -> list[PromptAnswers]:
    """Turn a raw row into a prompt with all of its answers and their scores; nothing where the row is left out.

    Known are the forms of preference rows, ranked ones first. A pair without scores has the values 1 and 0.

    Args:
        row: The raw row, keys to values.
        columns: The row's own name for a known column, e.g. ``{"answers": "samples"}``.

    Raises:
        ValueError: The row has no known form, or is not valid in its form; see
            :func:`~lion_lightning.data.formats.answers.preference.recognize_preferences`.
    """
    row, found = find_lists(row, columns or {})
    read = read_row(row, columns or {}, FORMS, found, _REFUSED)
    if read is None:
        return []
    if len(read.answers) < 2:
        raise ValueError("a group needs two answers, and answers has 1; skip the row with a `transform`")
    unscored = any(map(math.isnan, read.values))
    return [PromptAnswers(read.answers, (1.0, 0.0) if unscored else read.values)]
