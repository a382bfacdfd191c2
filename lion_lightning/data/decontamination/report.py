"""What decontamination has found in a source: causes, counts by benchmark, and each row with its item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lion_lightning.data.decontamination.benchmarks import BenchmarkItem
from lion_lightning.data.document_filters.base import LeftOut
from lion_lightning.data.document_filters.candidates import Candidates
from lion_lightning.data.selection.spans import Choice

_MAX_SHOWN = 3  # in the log, for each benchmark
_MAX_KEPT = 10_000  # in the file of the decision
_MAX_WORDS = 12


class Hit(NamedTuple):
    """A row that overlaps with an item.

    Attributes:
        row: Position of the row's example among the candidates.
        item: Position of the item among those of all benchmarks.
        share: Share of the item's words that the row has too.
    """

    row: int
    item: int
    share: float


def summed_up(
    names: Sequence[str],
    items: Sequence[BenchmarkItem],
    hits: Sequence[Hit],
    candidates: Candidates,
    ngram: int,
    warn_above: float,
) -> LeftOut:
    """The rows to leave out, by cause and benchmark, with counts and examples.

    Args:
        names: Names of the benchmarks.
        items: Items of all benchmarks.
        hits: Rows that overlap with an item.
        candidates: The rows.
        ngram: Words of an n-gram; items with fewer are counted apart.
        warn_above: Share of a benchmark's items above which it is flagged.
    """
    causes: dict[str, Choice] = {}
    counts, lines, warnings = [], [], []
    for number, name in enumerate(names):
        own = [hit for hit in hits if items[hit.item].benchmark == number]
        short = [hit for hit in own if items[hit.item].is_short(ngram)]
        long = [hit for hit in own if not items[hit.item].is_short(ngram)]
        for cause, some in ((f"overlaps with {name}", long), (f"contains a short item of {name}", short)):
            if some:
                causes[cause] = np.zeros(len(candidates), np.bool_)
                causes[cause][[hit.row for hit in some]] = True
        all_of_it = [item for item in items if item.benchmark == number]
        found = len({hit.item for hit in own})
        count = {
            "benchmark": name,
            "items": len(all_of_it),
            "items_found": found,
            "share": found / len(all_of_it),
            "flagged": found / len(all_of_it) > warn_above,
            "short_items": sum(item.is_short(ngram) for item in all_of_it),
            "short_items_found": len({hit.item for hit in short}),
            "rows": len({hit.row for hit in own}),
        }
        counts.append(count)
        lines += [_line(count, ngram), *_shown(own, items, candidates)]
        if count["flagged"]:
            warnings.append(_warning(count, warn_above))
    return LeftOut(causes, {"benchmarks": counts}, lines, warnings, _details(hits, items, candidates))


def _line(count: dict[str, Any], ngram: int) -> str:
    line = (
        f"benchmark {count['benchmark']}: {count['items_found']:,} of {count['items']:,} items ({count['share']:.1%}) "
        f"found in {count['rows']:,} rows, which are left out"
    )
    if count["short_items"]:
        line += f"; {count['short_items_found']:,} of {count['short_items']:,} items of fewer than {ngram} words"
    return line


def _warning(count: dict[str, Any], warn_above: float) -> str:
    return (
        f"{count['share']:.1%} of the items of benchmark {count['benchmark']} are in it, more than {warn_above:.1%}. "
        "The rows that were found are left out, but reworded ones may remain: take the source out, or do not trust "
        "the benchmark's result"
    )


def _shown(hits: Sequence[Hit], items: Sequence[BenchmarkItem], candidates: Candidates) -> list[str]:
    """The first few of the largest overlaps, for a person to check."""
    chosen = sorted(hits, key=lambda hit: -hit.share)[:_MAX_SHOWN]
    lines = []
    for hit, place in zip(chosen, candidates.places([hit.row for hit in chosen]), strict=True):
        item = items[hit.item]
        words = " ".join(item.texts[0][:_MAX_WORDS])
        lines.append(f"{place} has {hit.share:.0%} of the words of {item.where} ({words} ...)")
    return lines


def _details(hits: Sequence[Hit], items: Sequence[BenchmarkItem], candidates: Candidates) -> list[dict[str, Any]]:
    kept = hits[:_MAX_KEPT]
    details = []
    for hit, place in zip(kept, candidates.places([hit.row for hit in kept]), strict=True):
        details.append({"row": place, "item": items[hit.item].where, "overlap": round(hit.share, 4)})
    return details
