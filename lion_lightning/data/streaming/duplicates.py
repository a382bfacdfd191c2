"""The contents of the last documents, as hashes in bounded memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Hashes = npt.NDArray[np.uint64]

_GENERATIONS = 16


class RecentHashes:
    """Tells new hashes from those of the last ``capacity`` new ones, or a few more.

    The hashes of a generation (a sixteenth of the capacity) are a set; once it is full they are sorted into the
    sixteen generations before it, and the oldest of those is forgotten. So a hash is found if fewer than ``capacity``
    new ones came since, and no longer after 17 generations. Memory: 16 bytes a hash, and 80 more for those of the set.

    All that is known follows from the order of the new hashes, so an earlier moment is their number then.

    Args:
        capacity: How many to remember; 0 for none, so that all are new.

    Attributes:
        count: New hashes so far.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count = 0
        self._size = max(1, -(-capacity // _GENERATIONS))
        self._history: dict[int, Hashes] = {}  # the full generations by number, each in the order of coming
        self._recent: list[int] = []  # the present one
        self._set: set[int] = set()
        self._sorted: Any = memoryview(b"").cast("B")

    def add(self, value: int) -> bool:
        """Remember a 64-bit hash; True if it is new."""
        if not self.capacity:
            self.count += 1
            return True
        if value in self._set:
            return False
        place = bisect_left(self._sorted, value)
        if place < len(self._sorted) and self._sorted[place] == value:
            return False
        self.count += 1
        self._set.add(value)
        self._recent.append(value)
        if len(self._recent) == self._size:
            self._history[self._generation - 1] = np.array(self._recent, np.uint64)
            self._begin_generation()
        return True

    def forget(self, before: int) -> None:
        """Drop what no moment since the one with so many new hashes needs."""
        first = before // self._size - _GENERATIONS
        self._history = {number: part for number, part in self._history.items() if number >= first}

    def state(self) -> dict[str, Any]:
        """Everything since the last :meth:`forget`, as plain data."""
        parts = [*self._history.values(), np.array(self._recent, np.uint64)]
        first = min(self._history, default=self._generation)
        return {"first": first, "hashes": torch.from_numpy(np.concatenate(parts).view(np.int64))}

    def load_state(self, state: Mapping[str, Any], count: int) -> None:
        """Go back to the moment with so many new hashes."""
        hashes, self.count = state["hashes"].cpu().numpy().view(np.uint64), count
        if not self.capacity:
            return
        self._history = {}
        for number in range(state["first"], self._generation):
            start = (number - state["first"]) * self._size
            self._history[number] = hashes[start : start + self._size].copy()
        start = (self._generation - state["first"]) * self._size
        self._begin_generation()
        self._recent = hashes[start : start + count % self._size].tolist()
        self._set = set(self._recent)

    @property
    def _generation(self) -> int:
        return self.count // self._size

    def _begin_generation(self) -> None:
        self._recent, self._set = [], set()
        known = [part for number, part in self._history.items() if number >= self._generation - _GENERATIONS]
        merged: Any = np.sort(np.concatenate([np.empty(0, np.uint64), *known]))
        self._sorted = memoryview(merged)  # a number of an array would be made anew for each comparison
