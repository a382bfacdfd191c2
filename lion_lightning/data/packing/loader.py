"""A loader of packed batches that resumes at the very next batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from hashlib import blake2b
from math import ceil
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lion_lightning.data.packing.best_fit import BestFit, Integers, PackedRows, Packing, Span
from lion_lightning.data.packing.collate import collate
from lion_lightning.types import PackedBatch, Sample, SampleSegment

logger = logging.getLogger(__name__)


class Samples(Protocol):
    """Random access to samples. A ``digest`` of all their tokens and targets, if there is one, spares reading them."""

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

    A state says how many batches were handed out. That is exact for every checkpoint that is saved between two batches;
    one that an exception's handler saves in the middle of a batch counts that batch as done, unless the module is an
    ``AlignmentModule``, which goes back to the last optimizer step.

    Args:
        samples: What to load.
        lengths: ``(samples,)`` tokens of each.
        capacity: Tokens of a row.
        packing: How samples share rows; None for best-fit decreasing.
        batch_size: PackedRows of a micro-batch.
        shuffle: Whether every epoch has rows and an order of its own; otherwise all are alike.
        seed: Seed of packing and order.
        rank: This process's place among the data-parallel ones.
        world_size: Number of data-parallel processes.
        num_workers: Processes that read ahead.
        pin_memory: Whether batches are put into page-locked memory for a faster copy to a GPU.
        settings: What the samples follow from, by name: what a message names when they are no longer the same.

    Raises:
        ValueError: If there are no samples, or one does not fit.
    """

    batch_sampler = None
    """Lightning asks every loader that has a sampler for one."""

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
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if not len(lengths):
            raise ValueError("there are no samples to load.")
        self.samples, self.lengths = samples, lengths
        self.capacity, self.packing = capacity, packing or BestFit()
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.settings = dict(settings or {})
        self.epoch = 0
        self._yielded = self._resume_at = 0
        self._noted = False
        self._rows = self._plan()

    @property
    def sampler(self) -> PackedLoader:
        """Itself: Lightning looks for ``set_epoch`` on a loader's sampler."""
        return self

    @property
    def rows(self) -> PackedRows:
        """PackedRows of the present epoch, in the order in which they are loaded."""
        return self._rows

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose rows the next iteration yields; another than the present begins at its first batch."""
        if epoch == self.epoch:
            return
        self.epoch, self._yielded, self._resume_at = epoch, 0, 0
        if self.shuffle:
            self._rows = self._planned_alike()

    def __len__(self) -> int:
        """Micro-batches of this rank in an epoch, the same in every epoch."""
        return ceil(len(self._rows) / (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[PackedBatch]:
        """Micro-batches of the present epoch; after :meth:`load_state_dict`, once, only those still to come.

        A generator, so that nothing is decided before the first ``next``: Lightning calls ``iter`` before it sets the
        epoch of a resumed run.
        """
        start, self._resume_at = self._resume_at, 0
        self._yielded = start
        for batch in self._reader(range(start, len(self))):
            self._yielded += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer stands (workers may have read further), and what that place means."""
        return {
            "epoch": self.epoch,
            "batches": self._yielded,
            "length": len(self),
            "settings": self._settings(),
            "fingerprint": self.fingerprint(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the last batch that was handed out before the state was saved, in that epoch.

        Raises:
            ValueError: If the state stands within an epoch, and that epoch's batches are no longer the same.
        """
        self.set_epoch(state["epoch"])
        finished = state["batches"] >= state["length"]
        changes, same = self.changes(state), state["fingerprint"] == self.fingerprint()
        if not same and state["batches"] and not finished:
            self._refuse_other_batches(state)
        if changes or not same:
            self.note_changes(state)
        self._yielded = self._resume_at = len(self) if finished else state["batches"]

    def fingerprint(self) -> str:
        """Hash of which samples each batch of the present epoch holds, and of all their tokens and targets."""
        rows = self._rows
        digest = blake2b(f"{self.batch_size} {self.world_size} {self._content}".encode(), digest_size=16)
        for numbers in (rows.offsets, rows.documents, rows.starts, rows.stops):
            digest.update(numbers.astype(np.int64).tobytes())
        return digest.hexdigest()

    def note_changes(self, state: Mapping[str, Any]) -> None:
        """Say, once, what is taken from this run and not from the checkpoint: where that ends an epoch, all of it.

        Args:
            state: The checkpoint's.
        """
        if self.rank == 0 and not self._noted:
            what = "; ".join(self.changes(state)) or "another order of the documents"
            logger.warning("goes on with other data or settings of it than the checkpoint's, from here on: %s", what)
        self._noted = True

    def changes(self, state: Mapping[str, Any]) -> list[str]:
        """What decides the batches and is no longer what it was, with both values.

        Args:
            state: A checkpoint's.
        """
        then, now = state["settings"], self._settings()
        names = [name for name in now | then if then.get(name) != now.get(name)]
        return [f"{name} was {then.get(name, 'nothing')}, is {now.get(name, 'nothing')}" for name in names]

    @cached_property
    def _content(self) -> str:
        """Hash of all samples' tokens and targets; read once, unless the samples know it."""
        known = getattr(self.samples, "digest", None)
        if isinstance(known, str):
            return known
        digest = blake2b(digest_size=16)
        for position in range(len(self.lengths)):
            for piece in self.samples[position].segments:
                digest.update(np.array([len(piece.input_ids), piece.parent], dtype=np.int64).tobytes())
                digest.update(piece.input_ids.astype(np.int64).tobytes())
                digest.update(piece.supervised.astype(np.bool_).tobytes())
        return digest.hexdigest()

    def _settings(self) -> dict[str, Any]:
        """What decides the batches, by the name under which a message can say that it changed."""
        return {
            "documents": len(self.lengths),
            "tokens": int(np.sum(self.lengths, dtype=np.int64)),
            "tokens of a row": self.capacity,
            "packing": type(self.packing).__name__,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "shuffled": self.shuffle,
            "number of ranks": self.world_size,
            "content of the documents": self._content[:12],
            **self.settings,
        }

    def _refuse_other_batches(self, state: Mapping[str, Any]) -> None:
        what = "; ".join(self.changes(state)) or "another order of the documents"
        raise ValueError(
            f"the checkpoint stands after batch {state['batches']} of {state['length']} of epoch {state['epoch']}, and "
            f"that epoch's batches have changed ({what}): samples would be repeated or skipped. Resume with the old "
            "settings and data, or from a checkpoint of the end of an epoch."
        )

    def _reader(self, turns: range) -> DataLoader[PackedBatch]:
        return DataLoader(
            _Batches(self.samples, self._rows, self.batch_size, self.capacity),
            sampler=[turn * self.world_size + self.rank for turn in turns],
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            generator=torch.Generator().manual_seed(self.seed),  # else it would draw from the global one
        )

    def _plan(self) -> PackedRows:
        rng = np.random.default_rng([self.seed, self.epoch] if self.shuffle else self.seed)
        rows = self.packing.rows(self.lengths, self.capacity, rng)
        return _reorder(rows, rng.permutation(len(rows))) if self.shuffle else rows

    def _planned_alike(self) -> PackedRows:
        """This epoch's rows; as many as the last one's, since trainers ask for the length once."""
        rows = self._plan()
        if len(rows) != len(self._rows):
            raise ValueError(
                f"{type(self.packing).__name__} made {len(self._rows)} rows in one epoch and {len(rows)} in another; "
                "a packing's number of rows must not depend on its generator"
            )
        return rows


class _Batches(Dataset[PackedBatch]):
    """Micro-batches by number; numbers past the last are what a rank without work runs."""

    def __init__(self, samples: Samples, rows: PackedRows, batch_size: int, capacity: int) -> None:
        self.samples, self.rows, self.batch_size, self.capacity = samples, rows, batch_size, capacity

    @override
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
    if len(sample.segments) > 1:
        raise ValueError("packing: Wrapped cuts documents, and a sample of several parts cannot be cut; use BestFit.")
    ids, supervised, parent = sample.segments[0]
    piece = SampleSegment(ids[span.start : span.stop], supervised[span.start : span.stop], parent)
    return Sample((piece,), sample.index, sample.source)


def _reorder(rows: PackedRows, order: Integers) -> PackedRows:
    sizes = np.diff(rows.offsets)[order]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
    places = np.repeat(rows.offsets[:-1][order], sizes) + within
    return PackedRows(offsets, rows.documents[places], rows.starts[places], rows.stops[places])
