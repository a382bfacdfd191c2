"""A loader of packed batches that resumes at the very next batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from math import ceil
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lion_lightning.data.collate import collate
from lion_lightning.data.packing import BestFit, Integers, Packing, Rows, Span
from lion_lightning.types import PackedBatch, Piece, Sample


class Samples(Protocol):
    """Random access to samples."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, position: int, /) -> Sample:
        """One sample."""


class PackedLoader:
    """Packs samples into rows, rows into micro-batches, and deals the micro-batches out to ranks.

    All that it does follows from the seed and the epoch. Micro-batch ``i`` of an epoch holds the next ``batch_size``
    rows and goes to rank ``i % world_size``, so the rows of an optimizer step are the same however they are split. All
    ranks get equally many batches: where they do not come out even, the last ones of some ranks supervise nothing.

    Lightning sets the epoch, saves the state in every checkpoint and hands it back on resume; it does so for any loader
    with ``sampler.set_epoch``, ``state_dict`` and ``load_state_dict``. Without Lightning, call :meth:`set_epoch`.

    Args:
        samples: What to load.
        lengths: ``(samples,)`` tokens of each.
        capacity: Tokens of a row.
        packing: How samples share rows; None for best-fit decreasing.
        batch_size: Rows of a micro-batch.
        shuffle: Whether rows come in a new random order each epoch.
        seed: Seed of packing and order.
        rank: This process's place among the data-parallel ones.
        world_size: Number of data-parallel processes.
        num_workers: Processes that read ahead.
        pin_memory: Whether batches are put into page-locked memory for a faster copy to a GPU.

    Raises:
        ValueError: If there are no samples.
    """

    def __init__(
        self,
        samples: Samples,
        lengths: Integers,
        *,
        capacity: int,
        packing: Packing | None = None,
        batch_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if not len(lengths):
            raise ValueError("there are no samples to load.")
        self.samples, self.lengths = samples, lengths
        self.capacity, self.packing = capacity, packing or BestFit()
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.epoch = 0
        self._yielded = 0
        self._restored: dict[str, Any] | None = None
        self._plan = lru_cache(maxsize=1)(self._make_plan)

    batch_sampler = None
    """Lightning asks every loader that has a sampler for one."""

    @property
    def sampler(self) -> PackedLoader:
        """Itself: Lightning looks for ``set_epoch`` on a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        if epoch != self.epoch:
            self.epoch, self._yielded = epoch, 0

    @property
    def rows(self) -> Rows:
        """Rows of the present epoch, in the order in which they are loaded."""
        return self._plan(self.epoch)

    def __len__(self) -> int:
        """Micro-batches of this rank in an epoch."""
        return ceil(self._all_batches / self.world_size)

    def __iter__(self) -> Iterator[PackedBatch]:
        """Micro-batches of the present epoch, from the one after the restored state on."""
        start = self._take_restored()
        mine = [number * self.world_size + self.rank for number in range(start, len(self))]
        self._yielded = start
        for batch in self._reader(mine):
            self._yielded += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer stands (workers may have read further), and what that place means."""
        return {
            "epoch": self.epoch,
            "batches": self._yielded,
            "length": len(self),
            "world_size": self.world_size,
            "fingerprint": self.fingerprint(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved place, once; it is checked when the iteration of its epoch begins."""
        self._restored = state

    def fingerprint(self) -> str:
        """Hash of all that decides which samples a batch holds, but for the number of ranks."""
        settings = (self.capacity, type(self.packing).__name__, self.batch_size, self.shuffle, self.seed)
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(self.lengths, dtype=np.int64).tobytes())
        return digest.hexdigest()

    @property
    def _all_batches(self) -> int:
        return ceil(len(self.rows) / self.batch_size)

    def _take_restored(self) -> int:
        """Batches of this epoch that were consumed before the state was saved."""
        state, self._restored = self._restored, None
        if state is None or state["epoch"] != self.epoch:
            return 0
        midway = 0 < state["batches"] < state["length"]
        same = state["world_size"] == self.world_size and state["fingerprint"] == self.fingerprint()
        if midway and not same:
            raise ValueError(
                f"the checkpoint stands at batch {state['batches']} of epoch {state['epoch']} of other data: the "
                "documents, max_length, packing, batch_size, seed or number of ranks have changed, so samples would repeat or be "
                "skipped. Resume with the old settings, or start from the weights alone."
            )
        return int(state["batches"]) if same else (0 if not state["batches"] else len(self))

    def _reader(self, numbers: list[int]) -> DataLoader[PackedBatch]:
        batches = _Batches(self.samples, self.rows, self.batch_size, self.capacity)
        return DataLoader(
            batches,
            sampler=numbers,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            generator=torch.Generator().manual_seed(self.seed),  # else it would draw from the global one
        )

    def _make_plan(self, epoch: int) -> Rows:
        rng = np.random.default_rng([self.seed, epoch])
        rows = self.packing.rows(self.lengths, self.capacity, rng)
        return _reorder(rows, rng.permutation(len(rows))) if self.shuffle else rows


class _Batches(Dataset[PackedBatch]):
    """Micro-batches by number; numbers past the last are what a rank without work runs."""

    def __init__(self, samples: Samples, rows: Rows, batch_size: int, capacity: int) -> None:
        self.samples, self.rows, self.batch_size, self.capacity = samples, rows, batch_size, capacity

    def __getitem__(self, number: int) -> PackedBatch:
        count = ceil(len(self.rows) / self.batch_size)
        if number >= count:
            return self[number % count].without_targets()
        rows = range(number * self.batch_size, min((number + 1) * self.batch_size, len(self.rows)))
        parts = [_part(self.samples[span.document], span) for row in rows for span in self.rows.spans(row)]
        return collate(parts, self.capacity * len(rows))


def _part(sample: Sample, span: Span) -> Sample:
    if span.stop - span.start == sample.length:
        return sample
    if len(sample.pieces) > 1:
        raise ValueError("packing: Wrapped cuts documents, and a sample of several parts cannot be cut; use BestFit.")
    ids, supervised, parent = sample.pieces[0]
    piece = Piece(ids[span.start : span.stop], supervised[span.start : span.stop], parent)
    return Sample((piece,), sample.index, sample.source)


def _reorder(rows: Rows, order: Integers) -> Rows:
    sizes = np.diff(rows.offsets)[order]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
    places = np.repeat(rows.offsets[:-1][order], sizes) + within
    return Rows(offsets, rows.documents[places], rows.starts[places], rows.stops[places])
