"""Documents (conversations, texts, preference pairs) as spans of tokenized examples: what an epoch reads from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from lion_lightning.data.packing.best_fit import Integers, small
from lion_lightning.data.reports.row_messages import RowMessages
from lion_lightning.data.sources.readers import Numbers
from lion_lightning.data.sources.source import Source
from lion_lightning.types import Sample, SampleSegment

Choice = npt.NDArray[np.bool_]


class FilterCounts(NamedTuple):
    """A number of documents and of tokens."""

    documents: int = 0
    tokens: int = 0

    @override
    def __str__(self) -> str:
        return f"{self.documents:,} ({self.tokens:,} tokens)"


class Examples(Protocol):
    """Tokenized examples: a ``TokenTable`` on disk, or the ``RoundTokens`` of a round.

    Attributes:
        raw_rows: Rows that were read.
        skipped_rows: How many of them a transform turned into no example.
        messages: Counted messages about the rows.
        tokens: Hash of all tokens and targets, in their order.
    """

    raw_rows: int
    skipped_rows: int
    messages: RowMessages
    tokens: str

    def __len__(self) -> int:
        """Number of examples."""

    @property
    def segment_offsets(self) -> Numbers:
        """``(examples + 1,)`` first segment of each example, among those of all; the last is their number."""

    @property
    def segment_lengths(self) -> npt.NDArray[np.int32]:
        """``(segments,)`` tokens of each segment: of a document, or of a prompt and its answers."""

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """``(segments,)`` score or label of each answer; NaN where that is unknown, and for roots."""

    @property
    def pair_offsets(self) -> Numbers:
        """``(examples + 1,)`` first pair of each example, among those of all; the last is their number."""

    @property
    def pairs(self) -> npt.NDArray[np.int32]:
        """``(pairs, 2)`` positions of chosen and rejected among the answers of their example."""

    @property
    def digests(self) -> npt.NDArray[np.uint64]:
        """``(examples, 2)`` 128-bit hash of each example's content."""

    @property
    def groups(self) -> npt.NDArray[np.uint64]:
        """``(examples, 2)`` 128-bit hash that examples of one prompt share; of a document its digest."""

    @property
    def longest(self) -> int:
        """Most tokens of a document, or of a prompt with one of its answers."""

    def segment(self, row: int, start: int, stop: int) -> SampleSegment:
        """Tokens ``start`` to ``stop`` of an example, counted through its segments; they lie in one segment."""

    def where(self, row: int) -> str:
        """Place of the raw row that an example was made from."""

    def targets(self, rows: Numbers, starts: Numbers, stops: Numbers, roots: Choice) -> Numbers:
        """Number of tokens trained in each span, ``(spans,)``; ``rows`` in any order, ``roots`` are no answers."""


class Spans(NamedTuple):
    """Documents as parts of examples, ascending by example; one entry per document.

    Attributes:
        rows: ``(documents,)`` row of the example in its token table.
        starts: ``(documents, segments)`` first token of each segment, counted through the example.
        stops: ``(documents, segments)`` one past the last token of each segment.
        numbers: ``(documents,)`` stable number of the example.
    """

    rows: Integers
    starts: Integers
    stops: Integers
    numbers: Integers

    @classmethod
    def full(cls, table: Examples, numbers: Numbers) -> Spans:
        """All examples of a table, not truncated."""
        lengths = table.segment_lengths.reshape(len(table), _width(table))
        stops = small(np.cumsum(lengths, axis=1, dtype=np.int64))
        return cls(small(np.arange(len(table))), stops - lengths, stops, small(numbers))

    @property
    def segment_lengths(self) -> Numbers:
        """``(documents, segments)`` tokens of each segment."""
        return self.stops - self.starts

    @property
    def lengths(self) -> Numbers:
        """``(documents,)`` tokens of each document."""
        lengths: Numbers = self.segment_lengths.sum(axis=1)
        return lengths

    @property
    def counts(self) -> FilterCounts:
        """How many there are."""
        return FilterCounts(len(self.rows), int(self.lengths.sum()))

    def take(self, which: Numbers | Choice) -> Spans:
        """The documents at these positions."""
        return Spans(*(values[which] for values in self))


@dataclass(frozen=True)
class Selection:
    """The examples of one source that are left after some filters, and counts of those that are not.

    Attributes:
        source: Where they come from.
        table: Their tokens.
        spans: The examples left.
        left_out: Documents and tokens left out, by cause.
        truncated: Documents that were truncated, and the tokens cut off them, by what was truncated.
        split: Documents split into several.
    """

    source: Source
    table: Examples
    spans: Spans
    left_out: dict[str, FilterCounts] = field(default_factory=dict)
    truncated: dict[str, FilterCounts] = field(default_factory=dict)
    split: int = 0

    def filter(self, keep: Choice, cause: str) -> Selection:
        """Leave out what is not kept, and count it."""
        if keep.all():
            return self
        lost = self.spans.take(~keep).counts
        causes = self.left_out | {cause: lost} if lost.documents else self.left_out
        return replace(self, spans=self.spans.take(keep), left_out=causes)

    def truncate(self, starts: Numbers, stops: Numbers, what: str) -> Selection:
        """Let segments start later or stop sooner, and count the tokens cut off."""
        spans = self.spans._replace(starts=starts, stops=stops)
        off = self.spans.lengths - spans.lengths
        counts = FilterCounts(int((off > 0).sum()), int(off.sum()))
        return replace(
            self, spans=spans, truncated=self.truncated | {what: counts} if counts.documents else self.truncated
        )

    @property
    def groups(self) -> npt.NDArray[np.uint64]:
        """``(documents, 2)`` hash of each, which pairs of one prompt share."""
        return self.table.groups[self.spans.rows]

    @property
    def margins(self) -> npt.NDArray[np.float64]:
        """``(documents,)`` by how much chosen scores above rejected; NaN where that is unknown."""
        values = self.table.values.reshape(len(self.table), _width(self.table))[self.spans.rows]
        return values[:, 1] - values[:, 2]

    @property
    def targets(self) -> Numbers:
        """``(documents, segments)`` tokens trained."""
        rows, starts, stops, _ = self.spans
        roots = np.broadcast_to(np.arange(starts.shape[1]) == 0, starts.shape)
        flat = (np.repeat(rows, starts.shape[1]), starts.ravel(), stops.ravel(), roots.ravel())
        return self.table.targets(*flat).reshape(starts.shape)


def _width(table: Examples) -> int:
    return int(np.diff(table.segment_offsets).max(initial=1))


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
        sizes = [len(selection.spans.rows) for selection in selections]
        self.bounds = list(pairwise(np.cumsum([0, *sizes]).tolist()))
        columns = zip(*(selection.spans for selection in selections), strict=True)
        self._spans = Spans(*(small(np.concatenate(column)) for column in columns))
        self.lengths = small(self._spans.lengths)

    @property
    def shared(self) -> int:
        """Tokens of prompts that answers share, and that sequences of one answer each would repeat."""
        lengths = self._spans.segment_lengths
        return int(lengths[:, 0].sum() * max(lengths.shape[1] - 2, 0))  # once for every answer but the first

    @cached_property
    def digest(self) -> str:
        """Hash of all tokens and targets of all documents, in their order."""
        found = blake2b("".join(table.tokens for table in self._tables).encode(), digest_size=16)
        found.update(np.array(self.bounds, dtype=np.int64).tobytes())
        for numbers in (self._spans.rows, self._spans.starts, self._spans.stops):
            found.update(numbers.astype(np.int64).tobytes())
        return found.hexdigest()

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.lengths)

    def __getitem__(self, position: int) -> Sample:
        """Read one document."""
        origin, row = self._place(position)
        bounds = zip(self._spans.starts[position].tolist(), self._spans.stops[position].tolist(), strict=True)
        root, *children = [self._tables[origin].segment(row, start, stop) for start, stop in bounds]
        children = [child._replace(parent=0) for child in children]  # answers follow the prompt, segment 0
        pairs = ((0, 1),) if len(children) == 2 else ()
        return Sample((root, *children), int(self._spans.numbers[position]), self._names[origin], pairs=pairs)

    def where(self, position: int) -> str:
        """Place of the raw row that a document was made from."""
        origin, row = self._place(position)
        return self._tables[origin].where(row)

    def _place(self, position: int) -> tuple[int, int]:
        """Which source, and which row of its table. Sources without documents share a bound with the next one."""
        origin = bisect_right(self.bounds, position, key=lambda bound: bound[0]) - 1
        return origin, int(self._spans.rows[position])
