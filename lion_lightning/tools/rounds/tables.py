"""Tables of the metrics of rounds, no wider than a terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from rich.table import Table

from lion_lightning.printing import literal
from lion_lightning.rollouts.rounds import Round

WIDTH = 80
"""Characters of a line; columns that do not fit go into another table."""

TABLES = {
    "Scores": r"score|score_spread|score_worst|score_best|prompts_with_signal|monitor_score|win_rate",
    "Parts of the score": r"(reward|not_rated)/.*",
    "Right answers": r"pass_rate|none_right|all_right|(length|unfinished)_(right|wrong)",
    "Right answers to the monitor prompts": r"(pass|majority)_at_\d+",
    "Prompts": r"prompts|waves|(pairs|groups)(_kept|_equal)?",
    "Answers": r"length|unfinished|distinct_2|self_bleu",
    "While training": r".*",  # what the module has logged for a round
}
"""The metrics of each table, as a pattern of their names. A metric is in the first table that it fits."""

UNPRINTED = {"answers", "prompts_with_pairs"}

FORMS = {
    r"prompts|waves|pairs|groups|groups_equal|not_rated/.*": "{:,.0f}",
    r"length.*": "{:z.1f}",
    r"score.*|monitor_score|reward/.*|distinct_2|self_bleu": "{:z.3f}",
    r"win_rate|pass_.*|majority_.*|(none|all)_right|unfinished.*|.*_kept|prompts_with_signal": "{:z.1%}",
    r".*": "{:z.4g}",
}
"""Formats, by pattern of the metrics' names; the first that fits."""


class Column(NamedTuple):
    """A column of texts.

    Attributes:
        header: A line for each word, so that many columns fit; no word is broken.
        cells: One per round.
    """

    header: str
    cells: list[str]

    @property
    def width(self) -> int:
        """Characters, with the space around them and one border."""
        return 3 + max(map(len, [*self.header.split("\n"), *self.cells]))


def metric_tables(rounds: Sequence[Round], metrics: Sequence[Mapping[str, float]]) -> Iterator[Table]:
    """Tables with a row per round; metrics that are known of no round have no column.

    Args:
        rounds: The rounds.
        metrics: Metrics of each, by name, without ``on_policy/`` before it.
    """
    items = {finished.items for finished in rounds}
    names = dict.fromkeys(name for found in metrics for name, value in found.items() if not math.isnan(value))
    left = [name for name in names if name not in UNPRINTED | ({"pairs", "groups"} - items)]
    numbers = Column("round", [str(finished.number) for finished in rounds])
    for title, pattern in TABLES.items():
        columns = [_column(name, metrics) for name in left if re.fullmatch(pattern, name)]
        left = [name for name in left if not re.fullmatch(pattern, name)]
        for number, part in enumerate(_fitting(columns, WIDTH - 1 - numbers.width)):
            yield _table(f"{title}, continued" if number else title, [numbers, *part])


def _column(name: str, metrics: Iterable[Mapping[str, float]]) -> Column:
    form = next(form for pattern, form in FORMS.items() if re.fullmatch(pattern, name))
    values = [found.get(name, math.nan) for found in metrics]
    # pass_at_4 is pass@4, and the name of a class is broken where its words begin
    words = re.sub(r"_at_(\d+)$", r"_@\1", name.removeprefix("reward/"))
    header = re.sub(r"_| |(?<=[a-z])(?=[A-Z])", "\n", words)
    return Column(header, ["-" if math.isnan(value) else form.format(value) for value in values])


def _fitting(columns: Iterable[Column], width: int) -> list[list[Column]]:
    """The columns in parts, each with as many as fit a width, and at least one."""
    parts: list[list[Column]] = []
    for column in columns:
        if not parts or sum(other.width for other in parts[-1]) + column.width > width:
            parts.append([])
        parts[-1].append(column)
    return parts


def _table(title: str, columns: Sequence[Column]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(literal(column.header), justify="right", no_wrap=True)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table
