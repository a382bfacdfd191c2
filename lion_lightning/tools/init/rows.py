"""A look at the first rows of data: which form they have, and what a source must say of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lion_lightning.data.formats.answers.groups import recognize_groups
from lion_lightning.data.formats.answers.labeled import recognize_labeled
from lion_lightning.data.formats.answers.preference import recognize_preferences
from lion_lightning.data.formats.pairing import BestWorst
from lion_lightning.data.formats.sft import recognize
from lion_lightning.data.reports.row_messages import RowMessages, collect_messages
from lion_lightning.data.sources.local_files import find_splits
from lion_lightning.data.sources.readers import Row
from lion_lightning.data.sources.source import Source
from lion_lightning.rollouts.prompts.forms import recognize_prompt

FIRST = 20
"""Rows that are looked at."""

_Read = Callable[[Mapping[str, Any], Mapping[str, str]], Sequence[Any]]

READERS: dict[str, _Read] = {
    "conversations": lambda row, columns: [recognize(row, columns)],
    "pairs": lambda row, columns: recognize_preferences(row, columns, BestWorst()),
    "answers": recognize_labeled,
    "groups": recognize_groups,
    "prompts": lambda row, columns: [prompt] if (prompt := recognize_prompt(row, columns)) else [],
}
"""How rows are read, by what they are for."""

_LIKELY = {
    "question": ("query", "user", "request", "problem", "task"),
    "answer": ("reply", "solution", "target", "assistant"),
    "chosen": ("better", "preferred", "winner", "accepted", "good"),
    "rejected": ("worse", "dispreferred", "loser", "bad"),
}
"""Names that columns may have where their known names are missing."""


@dataclass
class Look:
    """Settings for a set of rows, and a line about it.

    Attributes:
        source: The source for a config.
        rows: Number of rows; None for a hub id, which was not looked at.
        first: Values of the first rows, by column.
        line: For people.
    """

    source: dict[str, Any]
    rows: int | None = None
    first: list[Mapping[str, Any]] = field(default_factory=list)
    line: str = ""


def look(path: str, use: str) -> Look:
    """Look at the first rows of local data.

    Args:
        path: File, glob, folder, or a hub id, which is not opened.
        use: What the rows are for, one of :data:`READERS`.

    Raises:
        ValueError: There is no such file, or a row cannot be read; the message says what would do.
    """
    if find_splits(path) is None:
        return Look({"path": path}, line=f"{path}: a hub id, not looked at; `lion inspect` will")
    rows = Source(path).open()
    first = list(rows.take(np.arange(min(FIRST, len(rows)))))
    try:
        settings, messages = _settings(path, first, use)
    except ValueError as error:  # the setting that fixes it belongs in a config, and none is written here
        where = "; `lion init` without --data writes a config to say that in" if "`" in str(error) else ""
        raise ValueError(f"{error}{where}") from error
    forms = [", ".join(text.split(" | ")[1:]) for text in messages["form"]]  # a form is its name and its columns
    line = (
        f"{path}: {len(rows):,} row{'s' if len(rows) > 1 else ''}, read as {use} from the columns {' or '.join(forms)}"
    )
    if settings.get("format") == "chat":
        line += "; texts become turns of the chat template (format: chat)"
    if unused := messages.listed("unused", len(first)):
        line += f"; not used: {unused}"
    return Look({"path": path, **settings}, len(rows), [row.values for row in first], line)


def _settings(path: str, rows: Sequence[Row], use: str) -> tuple[dict[str, Any], RowMessages]:
    """Settings of a source with which the rows can be read, and the messages of reading them."""
    columns: dict[str, str] = {}
    try:
        messages = _read(Source(path), rows, use)
    except ValueError as error:
        columns = _likely_columns(rows[0].values)
        if not columns:
            raise
        try:
            messages = _read(Source(path, columns=columns), rows, use)
        except ValueError:
            raise error from None  # about the row as it is
    settings: dict[str, Any] = {"columns": columns} if columns else {}
    if messages["plain text"]:
        try:
            messages = _read(Source(path, columns=columns, format="chat"), rows, use)
        except ValueError:  # texts without a prompt
            return settings | {"format": "text"}, messages
        settings["format"] = "chat"
    return settings, messages


def _read(source: Source, rows: Sequence[Row], use: str) -> RowMessages:
    with collect_messages() as messages:
        for row in rows:
            source.examples(row, READERS[use])
    return messages


def _likely_columns(row: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for known, names in _LIKELY.items():
        own = [name for name in names if name in row]
        if known not in row and len(own) == 1:
            found[known] = own[0]
    return found
