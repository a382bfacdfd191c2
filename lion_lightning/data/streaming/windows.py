"""Packed rows of a stream, a window of documents at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from lion_lightning.data.packing.best_fit import PackedRows, Packing
from lion_lightning.data.streaming.mixing import Drawn, StreamMixture
from lion_lightning.types import Sample

_FIRST = 256  # documents of the first window; each is twice the one before, so that the first batch comes soon


@dataclass
class Window:
    """Documents that are shuffled and packed together.

    Attributes:
        number: Its number in the epoch.
        start: State of the mixture before its first document.
        size: Documents that it is to hold.
        documents: Those that were drawn.
    """

    number: int
    start: dict[str, Any]
    size: int
    documents: list[Drawn]

    def packed(self, packing: Packing, capacity: int, seed: list[int]) -> PackedRows:
        """Its rows in random order, which follows from the seed and the window's number."""
        lengths = np.array([drawn.length for drawn in self.documents], np.int64)
        rng = np.random.default_rng([*seed, self.number])
        rows = packing.rows(lengths, capacity, rng)
        return rows.take(rng.permutation(len(rows)))


@dataclass(frozen=True)
class PackedRow:
    """A row.

    Attributes:
        window: The window that it is of.
        first: True if it is the window's first row.
        rows: Rows of the window.
        number: Its number among them.
    """

    window: Window
    first: bool
    rows: PackedRows
    number: int

    def samples(self) -> list[Sample]:
        """Read its samples."""
        return [self.window.documents[span.document].sample(span) for span in self.rows.spans(self.number)]


class WindowedRows:
    """The rows of a mixture, from a window on.

    While the rows of a window are handed out the documents of the next are drawn, a few with each row, so that no step
    waits for a full window.

    Args:
        mixture: The documents.
        packing: How they share rows.
        capacity: Tokens of a row.
        window: Most documents of a window.
        seed: Seeds of the order.
        number: Number of the first window.
        show_progress: Whether to show how a window fills that takes long.
    """

    def __init__(
        self,
        mixture: StreamMixture,
        packing: Packing,
        capacity: int,
        window: int,
        seed: list[int],
        number: int = 0,
        show_progress: bool = True,
    ) -> None:
        self._mixture, self._packing, self._capacity = mixture, packing, capacity
        self._size, self._seed, self._first, self._show_progress = window, seed, number, show_progress

    def __iter__(self) -> Iterator[PackedRow]:
        """The rows."""
        window = self._begin(self._first)
        while True:
            self._fill(window, window.size)
            if not window.documents:
                return
            rows = window.packed(self._packing, self._capacity, self._seed)
            following = self._begin(window.number + 1)
            for number in range(len(rows)):
                yield PackedRow(window, number == 0, rows, number)
                self._fill(following, following.size * (number + 1) // len(rows))
            window = following

    def _begin(self, number: int) -> Window:
        return Window(number, self._mixture.state(), min(self._size, _FIRST << min(number, 40)), [])

    def _fill(self, window: Window, size: int) -> None:
        """Draw documents until a window has so many, or the stream ends."""
        missing = size - len(window.documents)
        bar = tqdm(total=missing, desc="read a window of documents", delay=2, disable=not self._show_progress)
        with bar:
            while len(window.documents) < size and (drawn := self._mixture.draw()) is not None:
                window.documents.append(drawn)
                bar.update()
