"""Decontamination: training rows that repeat benchmark items are left out (TÜLU 3, arXiv 2411.15124, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from lion_lightning.data.checks import check_sources
from lion_lightning.data.decontamination.benchmarks import BenchmarkItem, digest_of, read_items
from lion_lightning.data.decontamination.findings import Findings
from lion_lightning.data.decontamination.overlap import NgramIndex, split_words
from lion_lightning.data.document_filters.base import DocumentFilter, LeftOut
from lion_lightning.data.document_filters.candidates import Candidates
from lion_lightning.data.sources.readers import Numbers
from lion_lightning.data.sources.source import Source

_VERSION = 1
_BATCH_TEXTS = 1024


class Decontamination(DocumentFilter):
    """Leave out rows whose prompt overlaps with an item of a benchmark.

    What users wrote is compared, in lower-case words, never tokens: each user turn of a row, and of an item, is a
    text. Word i of an item's text is matched by a training text that has an ``ngram`` of the item which contains word
    i. The two overlap if more than ``overlap`` of the item's words are matched, by one and the same training text.
    An item of fewer than ``ngram`` words has no n-gram: rows that contain all of its words in a row are left out, and
    counted apart. Answers are not compared.

    A benchmark is flagged for a source if more than ``warn_above`` of its items are found in it. Source: TÜLU 3
    (arXiv 2411.15124), section 3.2; words are split as in its code.

    Args:
        benchmarks: Rows of the benchmarks, in any known form, with or without answers.
        ngram: Words of an n-gram.
        overlap: Share of an item's words above which a row is left out.
        warn_above: Share of a benchmark's items above which a source is flagged.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self, benchmarks: list[Source], ngram: int = 8, overlap: float = 0.5, warn_above: float = 0.02
    ) -> None:
        if not benchmarks:
            raise ValueError("Decontamination: benchmarks is empty; name the rows of at least one benchmark")
        check_sources(benchmarks, None, 0.0)
        if ngram < 2:
            raise ValueError(f"Decontamination: ngram is {ngram}; single words are in every text, so give at least 2")
        if not 0 <= overlap < 1:
            raise ValueError(
                f"Decontamination: overlap is {overlap}; it is the share of an item's words above which rows are left "
                "out, from 0 to below 1"
            )
        if not 0 <= warn_above <= 1:
            raise ValueError(f"Decontamination: warn_above is {warn_above}; give a share of items, from 0 to 1")
        self.benchmarks, self.ngram, self.overlap, self.warn_above = benchmarks, ngram, overlap, warn_above

    @override
    def check(self, sources: Sequence[Source]) -> None:
        super().check(sources)
        names = {_origin(source): source.label for source in sources}
        for benchmark in self.benchmarks:
            if (name := names.get(_origin(benchmark))) is not None:
                raise ValueError(
                    f"Decontamination: benchmark {benchmark.label} is the training source {name} itself, so nothing "
                    "would be left of it; take it out of one of the two"
                )

    @override
    def identity(self) -> dict[str, Any]:
        described = []
        for number, benchmark in enumerate(self.benchmarks):
            digest = digest_of([item for item in self._items if item.benchmark == number])
            described.append({**benchmark.description(), "digest": digest})
        settings = {"ngram": self.ngram, "overlap": self.overlap, "warn_above": self.warn_above}
        return {"class_path": type(self).__name__, "version": _VERSION, **settings, "benchmarks": described}

    @override
    def leave_out(self, candidates: Candidates) -> LeftOut:
        findings = Findings([benchmark.label for benchmark in self.benchmarks], self._items, self.ngram)
        texts: list[list[str]] = []
        rows: list[int] = []  # of each text
        for row, written in enumerate(candidates.user_texts()):
            if len(texts) >= _BATCH_TEXTS:  # bounds the memory
                self._compare(texts, rows, findings)
                texts, rows = [], []
            texts += map(split_words, written)
            rows += [row] * len(written)
        self._compare(texts, rows, findings)
        return findings.summed_up(candidates, self.warn_above)

    @cached_property
    def _items(self) -> list[BenchmarkItem]:
        items = []
        for number, benchmark in enumerate(self.benchmarks):
            items += read_items(number, benchmark, self.ngram)
        return items

    @cached_property
    def _index(self) -> NgramIndex:
        return NgramIndex([text for item in self._items for text in item.texts], self.ngram)

    @cached_property
    def _owners(self) -> Numbers:
        """Item of each text of the index."""
        return np.repeat(np.arange(len(self._items)), [len(item.texts) for item in self._items])

    def _compare(self, texts: Sequence[Sequence[str]], rows: Sequence[int], findings: Findings) -> None:
        for found in self._index.overlaps(texts, self.overlap):
            findings.add([rows[text] for text in found.documents], self._owners[found.texts], found.shares)


def _origin(source: Source) -> tuple[Any, ...]:
    """Where a source's rows are read from: a path, split and subset, or an iterable."""
    path = Path(source.path)
    return str(path.resolve()) if path.exists() else source.path, source.split, source.subset, source.iterable
