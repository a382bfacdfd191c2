"""The kept documents of a source, and the documents of an epoch, read at random."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lion_lightning.data.packing.best_fit import Integers, small
from lion_lightning.data.selection.spans import Choice, Examples, FilterCounts, Spans
from lion_lightning.data.sources.readers import Numbers
from lion_lightning.data.sources.source import Source
from lion_lightning.types import Sample, SampleSegment


class Regrouped(NamedTuple):
    """Trees that became more or fewer.

    Attributes:
        items: The pairs, or answers, that they have.
        before: Number of trees before.
        after: Number of trees after.
        tokens: By how many tokens they became shorter, or longer.
        rescored: Answers that came again with another score; the first one counts.
    """

    items: int = 0
    before: int = 0
    after: int = 0
    tokens: int = 0
    rescored: int = 0


@dataclass(frozen=True)
class Selection:
    """The examples of one source that are left after some filters, and counts of those that are not.

    Counts are of pairs, where there are any, else of answers, else of documents (:attr:`Spans.counts`).

    Attributes:
        source: Where they come from.
        table: Their tokens.
        spans: The examples left.
        left_out: Documents and tokens left out, by cause.
        truncated: Documents that were truncated, and the tokens cut off them, by what was truncated.
        split: Documents split into several.
        joined: Trees of one prompt that became one.
        cut: Trees longer than a row that became several.
    """

    source: Source
    table: Examples
    spans: Spans
    left_out: dict[str, FilterCounts] = field(default_factory=dict)
    truncated: dict[str, FilterCounts] = field(default_factory=dict)
    split: int = 0
    joined: Regrouped = field(default_factory=Regrouped)
    cut: Regrouped = field(default_factory=Regrouped)

    def filter(self, keep: Choice, cause: str) -> Selection:
        """Leave out the documents that are not kept, and count them."""
        return self if keep.all() else self._left(self.spans.take(keep), cause)

    def filter_pairs(self, keep: Choice, cause: str) -> Selection:
        """Leave out pairs, answers that are in no pair then, and prompts without any; the pairs are counted."""
        return self if keep.all() else self._left(self.spans.keep_pairs(keep), cause)

    def filter_answers(self, keep: Choice, cause: str) -> Selection:
        """Leave out answers (a choice among all segments; prompts stay), and prompts without any."""
        keep = keep | self.spans.roots
        return self if keep.all() else self._left(self.spans.keep_answers(keep), cause)

    def truncate(self, starts: Numbers, stops: Numbers, what: str) -> Selection:
        """Let segments start later or stop sooner, and count the documents and the tokens cut off."""
        spans = self.spans._replace(starts=starts, stops=stops)
        off = self.spans.lengths - spans.lengths
        counts = FilterCounts(int((off > 0).sum()), int(off.sum()))
        return replace(
            self, spans=spans, truncated=self.truncated | {what: counts} if counts.documents else self.truncated
        )

    @property
    def groups(self) -> npt.NDArray[np.uint64]:
        """``(documents, 2)`` hash of each, which documents of one prompt share."""
        return self.table.groups[self.spans.examples]

    @property
    def targets(self) -> Numbers:
        """``(segments,)`` tokens trained in each segment."""
        spans = self.spans
        return self.table.targets(spans.rows, spans.starts, spans.stops, spans.roots)

    def segment(self, position: int) -> SampleSegment:
        """Read one segment, by its position among all of them."""
        spans = self.spans
        return self.table.segment(int(spans.rows[position]), int(spans.starts[position]), int(spans.stops[position]))

    def _left(self, spans: Spans, cause: str) -> Selection:
        before, after = self.spans.counts, spans.counts
        known = self.left_out.get(cause, FilterCounts())
        documents = known.documents + before.documents - after.documents
        lost = FilterCounts(documents, known.tokens + before.tokens - after.tokens)
        return replace(self, spans=spans, left_out=self.left_out | {cause: lost})


class Documents:
    """The documents of an epoch: random access, with nothing in memory but a few small numbers a document.

    Args:
        selections: The sources' final selections; their ``spans`` are the documents.

    Attributes:
        lengths: ``(documents,)`` tokens of each.
        bounds: First and last-plus-one position of each source's documents.
    """

    def __init__(self, selections: Sequence[Selection]) -> None:
        """Lay the sources' documents one after the other."""
        self._tables = [selection.table for selection in selections]
        self._names = [selection.source.label for selection in selections]
        sizes = [len(selection.spans.numbers) for selection in selections]
        self.bounds = list(pairwise(np.cumsum([0, *sizes]).tolist()))
        self._spans = Spans.concatenate([selection.spans for selection in selections])
        self.lengths = small(self._spans.lengths)

    @property
    def shared(self) -> int:
        """Tokens that sequences of one prompt and one answer would repeat: one for each answer of each pair."""
        spans = self._spans
        lengths, prompts = spans.segment_lengths, spans.segment_lengths[spans.offsets[:-1]].astype(np.int64)
        if len(spans.pairs):
            separate = (lengths[spans.pair_segments].sum(axis=1) + 2 * prompts[spans.pair_owners]).sum()
        else:
            separate = lengths[~spans.roots].sum(dtype=int) + (prompts * (np.diff(spans.offsets) - 1)).sum()
        return max(int(separate) - int(self.lengths.sum(dtype=int)), 0)  # documents have no answers at all

    @property
    def shares_answers(self) -> bool:
        """True if an answer is in several pairs."""
        spans = self._spans
        return 2 * len(spans.pairs) > len(spans.rows) - len(spans.numbers)

    @cached_property
    def digest(self) -> str:
        """Hash of all tokens and targets of all documents, in their order, with values and pairs."""
        found = blake2b("".join(table.tokens for table in self._tables).encode(), digest_size=16)
        found.update(np.array(self.bounds, dtype=np.int64).tobytes())
        spans = self._spans
        for numbers in (spans.offsets, spans.rows, spans.starts, spans.stops, spans.pair_offsets, spans.pairs):
            found.update(numbers.astype(np.int64).tobytes())
        found.update(spans.values.astype(np.float64).tobytes())
        return found.hexdigest()

    @property
    def numbers(self) -> Integers:
        """``(documents,)`` stable number of each one's example: parts of one share it, and so do repetitions."""
        return self._spans.numbers

    @property
    def groups(self) -> npt.NDArray[np.uint64]:
        """``(documents, 2)`` hash of each one's prompt; where there are no answers, of its example's content."""
        rows, found = self._spans.examples, np.zeros((len(self), 2), np.uint64)
        for table, (low, high) in zip(self._tables, self.bounds, strict=True):
            found[low:high] = table.groups[rows[low:high]]
        return found

    def once(self) -> Documents:
        """The same documents without the repetitions of sources whose fraction is above 1."""
        spans, origins = self._spans, np.repeat(np.arange(len(self.bounds)), [high - low for low, high in self.bounds])
        roots = spans.offsets[:-1]
        _, first = np.unique(np.stack([origins, spans.rows[roots], spans.starts[roots]]), axis=1, return_index=True)
        kept = np.sort(first)
        made = copy(self)
        vars(made).pop("digest", None)  # it may be known by now, of all
        made._spans, made.lengths = spans.take(kept), self.lengths[kept]
        sizes = np.bincount(origins[kept], minlength=len(self.bounds)).tolist()
        made.bounds = list(pairwise(accumulate(sizes, initial=0)))
        return made

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.lengths)

    def __getitem__(self, position: int) -> Sample:
        """Read one document."""
        spans, (origin, _) = self._spans, self._place(position)
        part = slice(int(spans.offsets[position]), int(spans.offsets[position + 1]))
        bounds = zip(spans.rows[part].tolist(), spans.starts[part].tolist(), spans.stops[part].tolist(), strict=True)
        root, *answers = [self._tables[origin].segment(*bound) for bound in bounds]
        pairs = spans.pairs[spans.pair_offsets[position] : spans.pair_offsets[position + 1]]
        return Sample(
            (root, *(answer._replace(parent=0) for answer in answers)),  # they follow the prompt, segment 0
            int(spans.numbers[position]),
            self._names[origin],
            values=tuple(spans.values[part][1:].tolist()),
            pairs=tuple((chosen, rejected) for chosen, rejected in pairs.tolist()),
        )

    def notes(self) -> list[str]:
        """Lines about the documents that the sources' reports do not have."""
        return []

    def where(self, position: int) -> str:
        """Place of the raw row that a document was made from."""
        origin, row = self._place(position)
        return self._tables[origin].where(row)

    def _place(self, position: int) -> tuple[int, int]:
        """Which source, and which row of its table. Sources without documents share a bound with the next one."""
        origin = bisect_right(self.bounds, position, key=lambda bound: bound[0]) - 1
        return origin, int(self._spans.rows[self._spans.offsets[position]])
