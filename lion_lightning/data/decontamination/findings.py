"""Findings of decontamination in a source: causes, counts by benchmark, and each row with its item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lion_lightning.data.decontamination.benchmarks import BenchmarkItem
from lion_lightning.data.document_filters.base import LeftOut
from lion_lightning.data.document_filters.candidates import Candidates
from lion_lightning.data.selection.spans import Choice
from lion_lightning.data.sources.readers import Numbers

_MAX_SHOWN = 3  # in the log, for each benchmark
_MAX_KEPT = 10_000  # in the file of the decision, for each benchmark
_MAX_WORDS = 12


class Hit(NamedTuple):
    """A row, and the item of a benchmark that it overlaps with most.

    Attributes:
        row: Position of the row's example among the candidates.
        item: Position of the item among those of all benchmarks.
        share: Share of the item's words that the row has too.
    """

    row: int
    item: int
    share: float


@dataclass
class Findings:
    """Rows that overlap with items, while a source is read.

    Attributes:
        names: Names of the benchmarks.
        items: Items of all benchmarks.
        ngram: Words of an n-gram; items with fewer are counted apart.
    """

    names: Sequence[str]
    items: Sequence[BenchmarkItem]
    ngram: int

    def __post_init__(self) -> None:
        """Begin without rows."""
        self._benchmarks: Numbers = np.array([item.benchmark for item in self.items])
        self._short: Choice = np.array([len(item.texts[0]) < self.ngram for item in self.items])
        self._found: Choice = np.zeros(len(self.items), np.bool_)
        self._hits: dict[tuple[int, bool], dict[int, Hit]] = {}  # by benchmark and shortness, then by row

    def add(self, rows: Sequence[int], items: Numbers, shares: npt.NDArray[np.float64]) -> None:
        """Note rows, each of which overlaps with these items by these shares."""
        self._found[items] = True
        for number in np.unique(self._benchmarks[items]).tolist():
            for short in (False, True):
                own = np.flatnonzero((self._benchmarks[items] == number) & (self._short[items] == short))
                if len(own):
                    best = own[shares[own].argmax()]
                    known = self._hits.setdefault((number, short), {})
                    _note(known, rows, int(items[best]), float(shares[best]))

    def summed_up(self, candidates: Candidates, warn_above: float) -> LeftOut:
        """The rows to leave out, by cause and benchmark, with counts and examples.

        Args:
            candidates: The rows.
            warn_above: Share of a benchmark's items above which it is flagged.
        """
        causes: dict[str, Choice] = {}
        counts, lines, warnings, details = [], [], [], []
        for number, name in enumerate(self.names):
            long, short = (self._hits.get((number, is_short), {}) for is_short in (False, True))
            for cause, hits in ((f"overlaps with {name}", long), (f"contains a short item of {name}", short)):
                if hits:
                    causes[cause] = np.zeros(len(candidates), np.bool_)
                    causes[cause][[*hits]] = True
            all_hits = sorted([*long.values(), *short.values()])
            counts.append(self._counts(number, len({hit.row for hit in all_hits}), warn_above))
            lines += [self._line(counts[-1]), *self._shown(all_hits, candidates)]
            warnings += [_warning(counts[-1], warn_above)] if counts[-1]["flagged"] else []
            details += self._details(all_hits[:_MAX_KEPT], candidates)
        return LeftOut(causes, {"benchmarks": counts}, lines, warnings, details)

    def _counts(self, number: int, rows: int, warn_above: float) -> dict[str, Any]:
        own = self._benchmarks == number
        share = float(self._found[own].mean())
        return {
            "benchmark": self.names[number],
            "items": int(own.sum()),
            "items_found": int(self._found[own].sum()),
            "share": share,
            "flagged": share > warn_above,
            "short_items": int(self._short[own].sum()),
            "short_items_found": int((self._short & self._found)[own].sum()),
            "rows": rows,
        }

    def _line(self, count: dict[str, Any]) -> str:
        line = (
            f"benchmark {count['benchmark']}: {count['items_found']:,} of {count['items']:,} items "
            f"({count['share']:.1%}) found; rows left out: {count['rows']:,}"
        )
        if count["short_items"]:
            found, short = count["short_items_found"], count["short_items"]
            line += f"; of {short:,} items of fewer than {self.ngram} words {found:,} found"
        return line

    def _shown(self, hits: Sequence[Hit], candidates: Candidates) -> list[str]:
        """The first few of the largest overlaps, for a person to check."""
        chosen = sorted(hits, key=lambda hit: -hit.share)[:_MAX_SHOWN]
        lines = []
        for hit, place in zip(chosen, candidates.places([hit.row for hit in chosen]), strict=True):
            item = self.items[hit.item]
            words = " ".join(item.texts[0][:_MAX_WORDS])
            lines.append(f"{place} has {hit.share:.0%} of the words of {item.where} ({words} ...)")
        return lines

    def _details(self, hits: Sequence[Hit], candidates: Candidates) -> list[dict[str, Any]]:
        details = []
        for hit, place in zip(hits, candidates.places([hit.row for hit in hits]), strict=True):
            details.append({"row": place, "item": self.items[hit.item].where, "overlap": round(hit.share, 4)})
        return details


def _note(known: dict[int, Hit], rows: Sequence[int], item: int, share: float) -> None:
    for row in rows:
        if row not in known or share > known[row].share:
            known[row] = Hit(row, item, share)


def _warning(count: dict[str, Any], warn_above: float) -> str:
    return (
        f"{count['share']:.1%} of the items of benchmark {count['benchmark']} are in it, more than {warn_above:.1%}. "
        "The rows that were found are left out, but reworded ones may remain: take the source out, or do not trust "
        "the benchmark's result"
    )
