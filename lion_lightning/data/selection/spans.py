"""Documents, or prompts with their answers, as spans of tokenized examples, in flat arrays with offsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from lion_lightning.data.packing.best_fit import Integers, small
from lion_lightning.data.reports.row_messages import RowMessages
from lion_lightning.data.sources.readers import Numbers
from lion_lightning.types import SampleSegment

Choice = npt.NDArray[np.bool_]


class FilterCounts(NamedTuple):
    """A number of documents (of pairs, or of answers, where there are some) and of tokens."""

    documents: int = 0
    tokens: int = 0

    @override
    def __str__(self) -> str:
        return f"{self.documents:,} ({self.tokens:,} tokens)"


class Examples(Protocol):
    """Tokenized examples: a ``TokenTable`` on disk, or the ``RoundTokens`` of a round.

    An example is a document of one segment, or a prompt with its answers: any number of segments.

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
    """Documents as parts of examples. All segments of all documents are flat, those of a document side by side.

    A document is one segment, or a prompt and behind it its answers. In a joined tree they are of several examples.

    Attributes:
        numbers: ``(documents,)`` stable number of the (first) example.
        offsets: ``(documents + 1,)`` first segment of each document.
        rows: ``(segments,)`` row of the example in its token table.
        starts: ``(segments,)`` first token, counted through the example.
        stops: ``(segments,)`` one past the last token.
        values: ``(segments,)`` score or label of an answer; NaN where unknown, and for prompts and documents.
        pair_offsets: ``(documents + 1,)`` first pair of each document.
        pairs: ``(pairs, 2)`` positions of chosen and rejected among the answers of their document.
    """

    numbers: Integers
    offsets: Integers
    rows: Integers
    starts: Integers
    stops: Integers
    values: npt.NDArray[np.floating[Any]]
    pair_offsets: Integers
    pairs: Integers

    @classmethod
    def full(cls, table: Examples, numbers: Numbers) -> Spans:
        """All examples of a table, not truncated."""
        lengths, offsets = table.segment_lengths, small(table.segment_offsets)
        rows = stops = np.arange(len(table), dtype=np.int32)
        if len(lengths) == len(table):
            stops = lengths
        else:
            rows = np.repeat(rows, np.diff(offsets))
            through = np.cumsum(lengths, dtype=np.int64)  # through all examples
            stops = small(through - (through - lengths)[offsets[:-1]][rows])  # minus the tokens before each
        starts = stops - lengths
        return cls(numbers, offsets, rows, starts, stops, table.values, table.pair_offsets, table.pairs).compact()

    @classmethod
    def concatenate(cls, parts: Sequence[Spans]) -> Spans:
        """The documents of all parts, one after the other."""
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in cls._fields}
        for name in ("offsets", "pair_offsets"):
            sizes = [np.diff(getattr(part, name)) for part in parts]
            joined[name] = np.cumsum(np.concatenate([[0], *sizes]), dtype=np.int64)
        return cls(**joined).compact()

    @property
    def roots(self) -> Choice:
        """``(segments,)`` whether each is a document or a prompt, and not an answer."""
        roots = np.zeros(len(self.rows), dtype=np.bool_)
        roots[self.offsets[:-1]] = True
        return roots

    @property
    def owners(self) -> Integers:
        """``(segments,)`` position of each segment's document."""
        return np.repeat(np.arange(len(self.numbers), dtype=np.int32), np.diff(self.offsets))

    @property
    def pair_owners(self) -> Integers:
        """``(pairs,)`` position of each pair's document."""
        return np.repeat(np.arange(len(self.numbers), dtype=np.int32), np.diff(self.pair_offsets))

    @property
    def pair_segments(self) -> Integers:
        """``(pairs, 2)`` chosen and rejected as positions among all segments."""
        segments: Integers = self.offsets[:-1][self.pair_owners][:, None] + 1 + self.pairs
        return segments

    @property
    def examples(self) -> Integers:
        """``(documents,)`` row of each document's (first) example."""
        return self.rows[self.offsets[:-1]]

    @property
    def segment_lengths(self) -> Integers:
        """``(segments,)`` tokens of each segment."""
        return self.stops - self.starts

    @property
    def lengths(self) -> Integers:
        """``(documents,)`` tokens of each document, each of its segments once."""
        return self.totals(self.segment_lengths)

    @property
    def counts(self) -> FilterCounts:
        """Number of pairs, where there are any, else of answers or of documents; and of tokens."""
        units = count_units(len(self.numbers), len(self.rows), len(self.pairs))
        return FilterCounts(units, int(self.segment_lengths.sum(dtype=int)))

    def totals(self, numbers: Integers) -> Integers:
        """Sum of a number a segment over each document's segments."""
        if self._single:
            return numbers
        sums: Integers = np.add.reduceat(numbers, self.offsets[:-1]) if len(self.numbers) else numbers
        return sums

    def take(self, which: Numbers | Choice) -> Spans:
        """The documents at these positions."""
        order: Integers = np.flatnonzero(which) if which.dtype == np.bool_ else which.astype(np.int64, copy=False)
        if len(order) == len(self.numbers) and (order == np.arange(len(order))).all():
            return self  # as most sources are taken, each document once
        offsets, segments = np.arange(len(order) + 1, dtype=np.int32), order
        if not self._single:
            offsets, segments = _gather(self.offsets, order)
        pair_offsets, pairs = _constant(self.pair_offsets, len(order) + 1), order[:0]
        if len(self.pairs):
            pair_offsets, pairs = _gather(self.pair_offsets, order)
        return Spans(
            self.numbers[order],
            offsets,
            self.rows[segments],
            self.starts[segments],
            self.stops[segments],
            _constant(self.values, len(segments)) if self.values.strides == (0,) else self.values[segments],
            pair_offsets,
            self.pairs[pairs],
        )

    def keep_pairs(self, kept: Choice) -> Spans:
        """These pairs, the answers that are in one of them, and the documents that have one."""
        used = self.roots
        used[self.pair_segments[kept]] = True
        return self._keep(used, kept)

    def keep_answers(self, kept: Choice) -> Spans:
        """These answers, as a choice among all segments, and the pairs and documents that have what they need."""
        chosen, rejected = self.pair_segments.T
        return self._keep(kept | self.roots, kept[chosen] & kept[rejected])

    def _keep(self, segments: Choice, pairs: Choice) -> Spans:
        """Some segments, and some pairs of them; a document without an answer goes with its prompt."""
        sizes = self.totals(segments.astype(np.int32))
        kept = sizes > 1
        segments = segments & np.repeat(kept, np.diff(self.offsets))
        places = small(np.cumsum(segments) - 1)  # of each segment among those that are kept
        owners = self.pair_owners[pairs]
        positions = places[self.pair_segments[pairs]] - places[self.offsets[:-1]][owners][:, None] - 1
        pair_counts = np.bincount(owners, minlength=len(kept))[kept]
        return Spans(
            self.numbers[kept],
            small(np.concatenate([[0], np.cumsum(sizes[kept])])),
            self.rows[segments],
            self.starts[segments],
            self.stops[segments],
            self.values[segments],
            small(np.concatenate([[0], np.cumsum(pair_counts)])),
            small(positions),
        )

    def compact(self) -> Spans:
        """The same in as few bytes as hold it, since it is kept as long as a training lasts."""
        columns = {name: small(column) for name, column in self._asdict().items() if name != "values"}
        pairs, values = self.pairs, self.values
        for kind in (np.int8, np.int16):
            if pairs.max(initial=0) <= np.iinfo(kind).max:
                columns["pairs"] = pairs.astype(kind, copy=False)
                break
        if not len(pairs):
            columns["pair_offsets"] = _constant(np.zeros(1, np.int32), len(self.pair_offsets))
        if np.isnan(values).all():
            values = _constant(np.full(1, np.nan, np.float32), len(values))
        elif np.array_equal(values.astype(np.float32), values, equal_nan=True):
            values = values.astype(np.float32, copy=False)
        return Spans(**columns, values=values)

    @property
    def _single(self) -> bool:
        """True where each document is one segment, as texts and conversations are."""
        return len(self.rows) == len(self.numbers)


def count_units(documents: int, segments: int, pairs: int) -> int:
    """Number of pairs, where there are any, else of answers, else of documents."""
    return pairs or segments - documents or documents


def sort_hashes(hashes: npt.NDArray[np.uint64]) -> tuple[Numbers, Choice]:
    """Positions of 128-bit hashes, ``(documents, 2)``, ascending, and whether each is another than the one before."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    new = np.zeros(len(order), dtype=bool)
    new[:1] = True
    for word in hashes.T:
        ordered = word[order]
        new[1:] |= ordered[1:] != ordered[:-1]
    return order, new


def _gather(offsets: Integers, which: Integers) -> tuple[Integers, Integers]:
    """Offsets of the chosen lists among themselves, and positions of their items."""
    sizes = np.diff(offsets)[which]
    found = small(np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]))
    positions = np.repeat(offsets[:-1][which] - found[:-1], sizes)
    positions += np.arange(found[-1], dtype=positions.dtype)  # in each list 0, 1, ... behind its first
    return found, positions


def _constant(values: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """The first value so many times, in the memory of one."""
    return np.broadcast_to(values[:1], (length,)) if length else values[:0]
