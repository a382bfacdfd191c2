"""Ranked answers under other names, or as objects that have their score with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lion_lightning.data.formats.column_table import ANSWER_LISTS
from lion_lightning.data.formats.columns import Row
from lion_lightning.data.formats.unused_columns import is_empty, is_harmless, meaning_of, printable
from lion_lightning.data.reports.row_messages import add_message
from lion_lightning.data.sources.json_text import read_list

_LISTS = {
    "answers": ANSWER_LISTS[1:],
    "scores": ("rewards", "ratings", "overall_scores"),
    "ranks": ("rank", "ranking", "rankings"),
}
"""Names that lists of answers, of their scores and of their ranks have in common sets."""

_TEXTS = ("answer", "response", "completion", "output", "text", "content", "generation")
_SCORES = ("score", "overall_score", "reward", "rating")


def find_lists(row: Row, columns: Mapping[str, str]) -> tuple[Row, dict[str, str]]:
    """Ranked answers as lists of answers and of scores or ranks, wherever the row has them.

    UltraFeedback has ``completions`` of ``{response, overall_score}``, Nectar ``answers`` of ``{answer, rank}``, other
    sets ``generations`` and ``ratings``.

    Args:
        row: The raw row.
        columns: The row's own name for a known column.

    Returns:
        The row, in which lists of objects are taken apart, and its own names of known columns.

    Raises:
        ValueError: Objects have several scores, or a key that changes what an answer means.
    """
    found: dict[str, str] = {}
    for name, others in _LISTS.items():
        if name not in columns and row.get(name) is None:
            given = [other for other in others if other not in columns.values() and _list(row.get(other))]
            found |= {name: given[0]} if len(given) == 1 else {}
    own = columns.get("answers", found.get("answers", "answers"))
    entries = _list(row.get(own))
    if not entries:
        return row, {}
    if all(isinstance(entry, Mapping) and not entry.keys() & {"role", "from"} for entry in entries):
        is_scored = any(name in columns or name in found or row.get(name) is not None for name in ("scores", "ranks"))
        row, scores = _taken_apart(row, own, entries)
        found |= {} if is_scored else scores  # a list of scores beside them wins over scores within
    return row, found


def _taken_apart(row: Row, own: str, entries: Sequence[Mapping[str, Any]]) -> tuple[Row, dict[str, str]]:
    """A row with a list of texts, and one of scores if there are any, in place of a list of objects."""
    given: dict[str, None] = {}  # keys with content, in the order of their first appearance
    for entry in entries:
        given |= dict.fromkeys(key for key, value in entry.items() if not is_empty(value))
    texts = [key for key in _TEXTS if key in given]
    scores = [key for key in _SCORES if key in given] or [key for key in ("rank",) if key in given]
    if len(texts) != 1:  # what they are is not clear, and whatever reads the row says so
        return row, {}
    if len(scores) > 1:
        raise ValueError(
            f"the entries of {printable(own)} have {scores[0]} and {scores[1]}; keep the one that ranks them, with a "
            "`transform`"
        )
    for key in given:
        if key in texts or key in scores:
            continue
        meaning, name = meaning_of(key), printable(f"{own}.{key}")
        if meaning is not None and (meaning.of_prompt or meaning.is_text):
            raise ValueError(f"{name} holds {meaning.what}, and answers are texts or lists of messages; {meaning.fix}")
        if not is_harmless(key):
            add_message("unused", name)
    split = {**row, own: [entry.get(texts[0]) for entry in entries]}
    if not scores:
        return split, {}
    name = f"{own}.{scores[0]}"
    split[name] = [entry.get(scores[0]) for entry in entries]
    return split, {"ranks" if scores[0] == "rank" else "scores": name}


def _list(value: Any) -> Sequence[Any] | None:
    """A list that is not empty, or its JSON text; None for anything else."""
    try:
        return read_list(value, "a list") or None
    except ValueError:
        return None
