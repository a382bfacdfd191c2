"""Columns of a prompt's row that verifiers read."""

from __future__ import annotations

from typing import Any

from lion_lightning.types import Prompt


def place_of(prompt: Prompt) -> str:
    """Location of a prompt for messages: its file and line, or the beginning of its question."""
    return prompt.where or repr(prompt.question[:40])


def reference_answer(prompt: Prompt, column: str) -> Any:
    """The reference answer in a column of the prompt's row.

    Raises:
        ValueError: The row does not have this column.
    """
    if prompt.row.get(column) is None:
        known = ", ".join(prompt.row) or "none"
        raise ValueError(
            f"the row has no column {column!r} with the reference answer; its columns are {known}: set `column`"
        )
    return prompt.row[column]
