"""Labels of single answers: columns that say whether an answer is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from lion_lightning.data.formats.column_table import FAULTS, LABELS, RATINGS, truth
from lion_lightning.data.formats.columns import Fields, Row
from lion_lightning.data.formats.unused_columns import meaning_of, printable
from lion_lightning.data.reports.row_messages import add_message


def find_label(row: Row, columns: Mapping[str, str]) -> dict[str, str]:
    """The only column that says of the row's answer whether it is wanted, as ``{"label": name}``; else nothing.

    Args:
        row: The raw row.
        columns: The row's own name for a known column.

    Raises:
        ValueError: Several columns may be the label, or the only one grades in numbers, whose scale is not known.
    """
    if "label" in columns or row.get("label") is not None:
        return {}
    mapped = {*columns.values()}
    marks = [name for name in row if name not in mapped and _names(name) in (LABELS, FAULTS, RATINGS)]
    # A rating of 1 is the best of two and the worst of five: a row alone does not tell.
    grades = [name for name in marks if _names(name) == RATINGS and _is_number(row[name])]
    told = [name for name in marks if name not in grades and truth(row[name]) is not None]
    if len(told) > 1:
        names = ", ".join(map(printable, told))
        raise ValueError(f"each of {names} may be the label; say with `columns: {{label: ...}}` which of them is")
    if grades and not told:
        name = printable(grades[0])
        raise ValueError(
            f"{name} grades in numbers, whose scale is not known; if 1 is wanted and 0 or -1 is not, say so with "
            f"`columns: {{label: {name}}}`, else make a label of it with a `transform`"
        )
    return {"label": told[0]} if told else {}


def read_label(row: Fields) -> float:
    """1.0 for an answer that is wanted, 0.0 for one that is not.

    Raises:
        ValueError: The label is neither.
    """
    own, value = printable(row.own("label")), row["label"]
    wanted = truth(value)
    if wanted is None or (_is_number(value) and value not in (1, 0, -1)):
        raise ValueError(
            f"{own} is {repr(value)[:40]}, which is neither of two labels; write true or false, 1 or 0 (or -1), "
            "or a word as good or bad, with a `transform`"
        )
    if _names(row.own("label")) == FAULTS:
        add_message("changed", f"{own} is read the other way round: an answer of which it says yes is not wanted")
        wanted = not wanted
    return float(wanted)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _names(name: str) -> tuple[str, ...]:
    meaning: Any = meaning_of(name)
    return () if meaning is None else meaning.names
