"""How documents share rows: pure functions of their lengths, with memory that stays flat for millions of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from typing_extensions import override

Integers = npt.NDArray[np.signedinteger[Any]]


def small(numbers: Integers) -> Integers:
    """The same numbers in 4 bytes each, if they fit: for arrays that are kept as long as a training lasts."""
    return numbers.astype(np.int32, copy=False) if numbers.max(initial=0) <= np.iinfo(np.int32).max else numbers


class Span(NamedTuple):
    """A part of a document: tokens ``start`` to ``stop - 1``."""

    document: int
    start: int
    stop: int


@dataclass(frozen=True)
class PackedRows:
    """Spans of each row, as flat arrays: no object per document.

    Attributes:
        offsets: ``(rows + 1,)`` where each row's spans begin in the other arrays.
        documents: ``(spans,)`` document of each span.
        starts: ``(spans,)`` its first token.
        stops: ``(spans,)`` one past its last token.
    """

    offsets: Integers
    documents: Integers
    starts: Integers
    stops: Integers

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return int((self.stops - self.starts).sum())

    def spans(self, row: int) -> list[Span]:
        """The spans of a row, in order."""
        part = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
        columns = (self.documents[part].tolist(), self.starts[part].tolist(), self.stops[part].tolist())
        return [Span(*span) for span in zip(*columns, strict=True)]

    def take(self, order: Integers) -> PackedRows:
        """The rows at these positions."""
        sizes = np.diff(self.offsets)[order]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)  # 0, 1, ... in each row
        positions = np.repeat(self.offsets[:-1][order], sizes) + within
        return PackedRows(offsets, self.documents[positions], self.starts[positions], self.stops[positions])

    def efficiency(self, capacity: int) -> float:
        """Tokens over what rows of this capacity could hold; 0 where there are no rows."""
        return self.tokens / (len(self) * capacity) if len(self) else 0.0


class Packing(ABC):
    """A way to fill rows. Subclass it and name the subclass in YAML by ``class_path``."""

    @abstractmethod
    def rows(self, lengths: Integers, capacity: int, rng: np.random.Generator) -> PackedRows:
        """Fill rows.

        Args:
            lengths: ``(documents,)`` tokens of each document.
            capacity: Most tokens of a row.
            rng: Decides what is left to chance. The number of rows must not depend on it: epochs are equally long.

        Raises:
            ValueError: If a document is longer than a row and this packing does not cut.
        """


class BestFit(Packing):
    """Best-fit decreasing: longest documents first, each into the fullest row that still holds it. Nothing is cut.

    At most 11/9 of the fewest possible rows, plus a constant (Johnson et al., 1974), and nearly all of the room on real
    lengths. Documents of equal length are permuted between epochs.
    """

    @override
    def rows(self, lengths: Integers, capacity: int, rng: np.random.Generator) -> PackedRows:
        _refuse_overlong(lengths, capacity)
        shuffled = rng.permutation(len(lengths))
        order = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
        room = min(capacity, int(lengths.sum()))  # more is never filled, and the search keeps a list for each token
        return _whole_documents(lengths, order, _best_fit(lengths[order], room))


class Unpacked(Packing):
    """One document a row."""

    @override
    def rows(self, lengths: Integers, capacity: int, rng: np.random.Generator) -> PackedRows:
        _refuse_overlong(lengths, capacity)
        order = np.arange(len(lengths))
        return _whole_documents(lengths, order, order)


class Wrapped(Packing):
    """Documents in random order, end to end, cut where a row ends: rows are full, and documents lose their context.

    Each part is a document by itself: its positions restart and its first token is not trained. It is what most
    pretraining code does; for conversations :class:`BestFit` is better.
    """

    @override
    def rows(self, lengths: Integers, capacity: int, rng: np.random.Generator) -> PackedRows:
        order = rng.permutation(len(lengths))
        ends = np.cumsum(lengths[order])
        total = int(ends[-1]) if len(ends) else 0
        edges = np.unique(np.concatenate([[0], ends, np.arange(capacity, total, capacity)]))
        firsts, lasts = edges[:-1], edges[1:]
        index = np.searchsorted(ends, firsts, side="right")
        begins = firsts - (ends - lengths[order])[index]
        offsets = np.searchsorted(firsts, np.arange(0, total, capacity))
        documents, ends_within = order[index], begins + lasts - firsts
        return PackedRows(np.append(offsets, len(firsts)), small(documents), small(begins), small(ends_within))


def _best_fit(lengths: Integers, capacity: int) -> Integers:
    """Row of each document, taken in the order given.

    ``open_spaces`` has bit ``s`` set where some row has room for exactly ``s`` more tokens: the fullest row that fits
    is the lowest set bit from the document's length up.
    """
    rows = np.empty(len(lengths), dtype=np.int64)
    with_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    open_spaces = opened = 0
    for index, length in enumerate(lengths.data):  # no list of them is made
        fitting = open_spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = with_space[space].pop()
            if not with_space[space]:
                open_spaces ^= 1 << space
        else:
            space, row, opened = capacity, opened, opened + 1
        rows[index] = row
        left = space - length
        with_space[left].append(row)
        open_spaces |= 1 << left
    return rows


def _whole_documents(lengths: Integers, order: Integers, rows: Integers) -> PackedRows:
    by_row = np.argsort(rows, kind="stable")
    documents = small(order[by_row])
    counts = np.bincount(rows) if len(rows) else np.zeros(0, dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return PackedRows(offsets, documents, np.zeros_like(documents), small(lengths[documents]))


def _refuse_overlong(lengths: Integers, capacity: int) -> None:
    if len(lengths) and int(lengths.max()) > capacity:
        worst = int(lengths.argmax())
        raise ValueError(
            f"document {worst} has {int(lengths[worst])} tokens, more than the {capacity} of a row; truncate or split "
            "it first, or raise data.max_length"
        )
