"""A filter of raw rows: a function that a source names as its ``transform``."""

from typing import Any


def short_answers(row: dict[str, Any]) -> dict[str, Any] | list[dict[str, Any]]:
    """Keep conversations whose last answer has at most 18 characters; reports count the skipped ones."""
    return row if len(row["messages"][-1]["content"]) <= 18 else []
