"""Batch sampler: packs documents into rows, and deals micro-batches of rows out to ranks."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from math import ceil
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler
from typing_extensions import override

from lion_lightning.data.packing.best_fit import BestFit, Integers, PackedRows, Packing, Span


class RowIndex(NamedTuple):
    """A row of a micro-batch, as the batch sampler yields it.

    Attributes:
        spans: The documents of the row, or parts of them, in order.
        supervised: False in a batch that a rank runs only to keep step with the others.
        epoch: Epoch whose samples are meant; always 0 where all epochs are the same.
    """

    spans: list[Span]
    supervised: bool
    epoch: int = 0


class PackedBatchSampler(Sampler[list[RowIndex]]):
    """Micro-batches of this rank; all follow from the lengths, the seed and the epoch.

    Micro-batch ``i`` of an epoch holds the next ``batch_size`` rows and goes to rank ``i % world_size``, so the rows of
    an optimizer step are the same however they are split. All ranks get equally many batches: where they do not come
    out even, the last ones of some ranks supervise nothing.

    Args:
        lengths: ``(documents,)`` tokens of each.
        capacity: Tokens of a row.
        packing: How documents share rows; None for best-fit decreasing.
        batch_size: Rows of a micro-batch.
        shuffle: Whether each epoch is packed and ordered anew; otherwise all epochs are the same.
        seed: Seed of packing and order.
        rank: This process's rank among the data-parallel ones.
        world_size: Number of data-parallel processes.

    Attributes:
        epoch: The present epoch.
        rows: Its rows, in the order in which they are loaded.
        consumed: Batches of it that were handed out; the loader counts them.

    Raises:
        ValueError: There are no documents, or one does not fit a row.
    """

    def __init__(
        self,
        lengths: Integers,
        *,
        capacity: int,
        packing: Packing | None = None,
        batch_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not len(lengths):
            raise ValueError("there are no samples to load.")
        self.lengths, self.capacity, self.packing = lengths, capacity, packing or BestFit()
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.consumed = self._start = 0
        self.rows = self._pack()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; another than the present begins at its first batch.

        Raises:
            ValueError: The packing gives another number of rows, but trainers ask for the length only once.
        """
        if epoch == self.epoch:
            return
        self.epoch, self.consumed, self._start = epoch, 0, 0
        if self.shuffle:
            rows = self._pack()
            if len(rows) != len(self.rows):
                raise ValueError(
                    f"{type(self.packing).__name__} made {len(self.rows)} rows in one epoch and {len(rows)} in "
                    "another; a packing's number of rows must not depend on its generator"
                )
            self.rows = rows

    def resume(self, consumed: int) -> None:
        """Let the next iteration, and only that, begin after so many batches.

        Args:
            consumed: Batches of the present epoch that were handed out before.
        """
        self.consumed = self._start = consumed

    def __len__(self) -> int:
        """Micro-batches of this rank in an epoch, the same in every epoch."""
        return ceil(len(self.rows) / (self.batch_size * self.world_size))

    @override
    def __iter__(self) -> Iterator[list[RowIndex]]:
        """The rows of each micro-batch that is still to come.

        A generator: a ``DataLoader`` with workers calls ``iter`` twice and reads the second.
        """
        start, self._start = self._start, 0
        self.consumed = start
        yield from map(self._batch, range(start, len(self)))

    def fingerprint(self) -> str:
        """Hash of which documents each batch of the present epoch holds."""
        digest = blake2b(f"{self.batch_size} {self.world_size}".encode(), digest_size=16)
        for numbers in (self.rows.offsets, self.rows.documents, self.rows.starts, self.rows.stops):
            digest.update(numbers.astype(np.int64).tobytes())
        return digest.hexdigest()

    def _batch(self, index: int) -> list[RowIndex]:
        number, count = index * self.world_size + self.rank, ceil(len(self.rows) / self.batch_size)
        # A number past the last batch is a repetition that supervises nothing.
        first = number % count * self.batch_size
        rows = range(first, min(first + self.batch_size, len(self.rows)))
        epoch = self.epoch if self.shuffle else 0
        return [RowIndex(self.rows.spans(row), number < count, epoch) for row in rows]

    def _pack(self) -> PackedRows:
        rng = np.random.default_rng([self.seed, self.epoch] if self.shuffle else self.seed)
        rows = self.packing.rows(self.lengths, self.capacity, rng)
        return rows.take(rng.permutation(len(rows))) if self.shuffle else rows
