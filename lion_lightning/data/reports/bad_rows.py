"""Rows that cannot be used and are left out: counted by cause, and written to a file."""

from __future__ import annotations

import json
import re

from lion_lightning.data.reports.row_messages import RowMessages, add_message
from lion_lightning.data.sources.readers import BrokenRowError, Row

MOST_BAD = 0.5
"""Share of a source's rows that may be left out as bad; where more are, a setting is wrong rather than the rows."""

_QUOTED = re.compile(r"""(?<!\w)(?:(?<=\()'|'(?![\w-]{1,20}'))(?:[^'\\]|\\.)*'|(?<!\w)"(?:[^"\\]|\\.)*\"""")
"""A text as ``repr`` writes it, but for the name of a key or a role; in parentheses there are always words of a row."""


def leave_out(row: Row, error: ValueError) -> str:
    """Count a row that is left out by its cause, the error.

    Returns:
        A line for the file of bad rows: a JSON object with the row's place, the cause, the error and the row.
    """
    message = str(error).removeprefix(f"{row.where}: ")
    # the same for all rows with this fault: without the fix, numbers, and words of the row
    cause = re.sub(r"(?<![\w-])\d+", "N", _QUOTED.sub("'...'", message).split("; ")[0])[:200]
    add_message("bad row", cause)
    values = row.content.raw if isinstance(row.content, BrokenRowError) else dict(row.content)
    return json.dumps({"where": row.where, "cause": cause, "error": message, "row": values}, default=str) + "\n"


def refuse_mostly_bad(name: str, messages: RowMessages, rows: int) -> None:
    """Refuse a source if more than :data:`MOST_BAD` of its rows are bad."""
    causes = messages["bad row"]
    if causes.total() > MOST_BAD * rows:
        cause, count = causes.most_common(1)[0]
        raise ValueError(
            f"source {name}: {causes.total():,} of {rows:,} rows are bad, and `on_bad_row: skip` leaves out half of "
            f"them at most; see {messages.bad_rows}; the most common cause ({count:,} times): {cause}"
        )
