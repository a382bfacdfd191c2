"""Transforms of raw rows that come with the package, for a source's ``transform``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lion_lightning.data.formats.turns import context, is_answer
from lion_lightning.data.sources.json_text import parse_messages


def each_answer(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each answer of a conversation, which ends with it; the answers before it are context.

    For templates that show all of an answer only in the last turn, as those that drop earlier reasoning. Each
    answer is then trained behind exactly what a model is given when it writes it, at the price of more tokens.

    Args:
        row: With ``messages``, or ShareGPT's ``conversations``; any other row stays as it is.
    """
    for column in ("messages", "conversations"):
        turns = parse_messages(row.get(column), column)
        if isinstance(turns, list) and all(isinstance(turn, Mapping) for turn in turns):
            break
    else:
        yield row
        return
    for number, turn in enumerate(turns):
        if is_answer(turn):
            before = [context(other) if is_answer(other) else other for other in turns[:number]]
            yield {**row, column: [*before, turn]}
