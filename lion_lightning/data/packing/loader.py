"""Loader of packed batches that resumes at the very next batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from hashlib import blake2b
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lion_lightning.data.packing.best_fit import Integers, PackedRows, Span
from lion_lightning.data.packing.collate import collate
from lion_lightning.data.packing.sampler import PackedBatchSampler, RowIndex
from lion_lightning.types import PackedBatch, Sample

logger = logging.getLogger(__name__)


class Samples(Protocol):
    """Random access to samples. A ``digest`` of all their tokens and targets, if there is one, spares reading them.

    Samples that differ from epoch to epoch have a ``set_epoch``, which is called before each row is read.
    """

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, position: int, /) -> Sample:
        """One sample."""


class RowDataset(Dataset[list[Sample]]):
    """The samples of a row, by what a batch sampler says of it.

    Args:
        samples: All samples.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    @override
    def __getitem__(self, row: RowIndex) -> list[Sample]:
        """The samples of one row, cut where the row holds a part of one.

        Raises:
            ValueError: A sample of several segments would be cut.
        """
        set_epoch(self.samples, row.epoch)
        made = [cut(self.samples[span.document], span) for span in row.spans]
        return made if row.supervised else [unsupervised(sample) for sample in made]


class PackedLoader:
    """A torch ``DataLoader`` of packed rows with a state: data set, batch sampler and ``collate_fn``.

    It is not itself a ``DataLoader``, as Lightning rebuilds those with its own sampler: on several ranks where ours
    is the ``batch_sampler``, and under ``overfit_batches`` where it is the ``sampler``. (torchdata's stateful
    loader is a ``DataLoader``, too.) Any other iterable is left as it is; its ``sampler.set_epoch`` is called and its
    ``state_dict`` is kept in checkpoints. Without Lightning, call :meth:`set_epoch`.

    A state says how many batches were handed out. That is exact for every checkpoint that is saved between two batches;
    one that an exception's handler saves in the middle of a batch counts that batch as done, unless the module is an
    ``AlignmentModule``, which goes back to the last optimizer step.

    Args:
        samples: What to load.
        lengths: ``(samples,)`` tokens of each.
        num_workers: Processes that read ahead.
        pin_memory: Whether batches are put into page-locked memory for a faster copy to a GPU.
        settings: What the samples follow from, by name: what a message names when they are no longer the same.
        **sampling: Arguments of the :class:`PackedBatchSampler`: ``capacity``, ``batch_size``, ``shuffle`` and so on.

    Attributes:
        sampler: The batch sampler; Lightning looks for its ``set_epoch`` here.

    Raises:
        ValueError: There are no samples, or one does not fit.
    """

    batch_sampler = None
    """Lightning asks every loader that has a sampler for one, too."""

    def __init__(
        self,
        samples: Samples,
        lengths: Integers,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        settings: Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> None:
        self.samples = samples
        self.sampler = PackedBatchSampler(lengths, **sampling)
        self.settings = dict(settings or {})
        self._warned = False
        self._batches: DataLoader[Any] = DataLoader(
            RowDataset(samples),
            batch_sampler=self.sampler,
            collate_fn=partial(collate_rows, capacity=self.sampler.capacity),
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else it would draw from the global one
        )

    @property
    def rows(self) -> PackedRows:
        """Rows of the present epoch, in the order in which they are loaded."""
        return self.sampler.rows

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose rows the next iteration yields."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """Micro-batches of this rank in an epoch, the same in every epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[PackedBatch]:
        """Micro-batches of the present epoch; after :meth:`load_state_dict`, once, only those still to come.

        A generator, so that nothing is decided before the first ``next``: Lightning calls ``iter`` before it sets the
        epoch of a resumed run.
        """
        for batch in self._batches:
            self.sampler.consumed += 1  # workers may have read further
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer stands, and what that position means."""
        return {
            "epoch": self.sampler.epoch,
            "batches": self.sampler.consumed,
            "length": len(self),
            "settings": self._settings(),
            "fingerprint": self.fingerprint(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the last batch that was handed out before the state was saved, in that epoch.

        Raises:
            ValueError: The state stands within an epoch, and that epoch's batches are no longer the same.
        """
        self.set_epoch(state["epoch"])
        finished = state["batches"] >= state["length"]
        changes, same = self.changes(state), state["fingerprint"] == self.fingerprint()
        if not same and state["batches"] and not finished:
            raise ValueError(
                f"the checkpoint stands after batch {state['batches']} of {state['length']} of epoch {state['epoch']}, "
                f"and that epoch's batches have changed ({self._describe(changes)}): samples would be repeated or "
                "skipped. Resume with the old settings and data, or from a checkpoint of the end of an epoch."
            )
        if changes or not same:
            self.warn_of_changes(state)
        self.sampler.resume(len(self) if finished else state["batches"])

    def fingerprint(self) -> str:
        """Hash of which samples each batch of the present epoch holds, and of all their tokens and targets."""
        return blake2b(f"{self.sampler.fingerprint()} {self._content}".encode(), digest_size=16).hexdigest()

    def warn_of_changes(self, state: Mapping[str, Any]) -> None:
        """Log, once, what is taken from this run and not from the checkpoint."""
        if self.sampler.rank == 0 and not self._warned:
            logger.warning(
                "goes on with other data or settings of it than the checkpoint's, from here on: %s",
                self._describe(self.changes(state)),
            )
        self._warned = True

    def changes(self, state: Mapping[str, Any]) -> list[str]:
        """Settings that decide the batches and have changed, with both values."""
        then, now = state["settings"], self._settings()
        names = [name for name in now | then if then.get(name) != now.get(name)]
        return [f"{name} was {then.get(name, 'nothing')}, is {now.get(name, 'nothing')}" for name in names]

    @cached_property
    def _content(self) -> str:
        """Hash of all samples' tokens and targets; read once, unless the samples know it."""
        known = getattr(self.samples, "digest", None)
        if isinstance(known, str):
            return known
        set_epoch(self.samples, 0)
        digest = blake2b(digest_size=16)
        for position in range(len(self.sampler.lengths)):
            sample = self.samples[position]
            digest.update(np.array([*sample.values, len(sample.pairs), *chain(*sample.pairs)], np.float64).tobytes())
            for segment in sample.segments:
                length = len(segment.input_ids) * (-1 if segment.bidirectional else 1)
                digest.update(np.array([length, segment.parent], dtype=np.int64).tobytes())
                digest.update(segment.input_ids.astype(np.int64).tobytes())
                digest.update(segment.supervised.astype(np.bool_).tobytes())
                digest.update(b"" if segment.weights is None else segment.weights.astype(np.float32).tobytes())
        return digest.hexdigest()

    def _settings(self) -> dict[str, Any]:
        """Settings that decide the batches, by their names in messages."""
        sampler = self.sampler
        return {
            "documents": len(sampler.lengths),
            "tokens": int(np.sum(sampler.lengths, dtype=np.int64)),
            "tokens of a row": sampler.capacity,
            "packing": type(sampler.packing).__name__,
            "batch_size": sampler.batch_size,
            "seed": sampler.seed,
            "shuffled": sampler.shuffle,
            "number of ranks": sampler.world_size,
            "content of the documents": self._content[:12],
            **self.settings,
        }

    def _describe(self, changes: list[str]) -> str:
        return "; ".join(changes) or "another order of the documents"


def collate_rows(rows: list[list[Sample]], capacity: int) -> PackedBatch:
    """A micro-batch of the samples of each row; ``capacity`` is that of one row, in tokens."""
    return collate(list(chain.from_iterable(rows)), capacity * len(rows))


def set_epoch(samples: Samples, epoch: int) -> None:
    """Choose the epoch of samples that differ from epoch to epoch."""
    if hasattr(samples, "set_epoch"):
        samples.set_epoch(epoch)


def cut(sample: Sample, span: Span) -> Sample:
    """The part of a sample that lies in a row; all of it where the row has room for more.

    Raises:
        ValueError: It is a part, and the sample has several segments.
    """
    if span.start == 0 and span.stop >= sample.length:
        return sample
    if len(sample.segments) > 1:
        raise ValueError("packing: Wrapped cuts documents, and a sample of several segments cannot be cut; use BestFit")
    return Sample((sample.segments[0].part(span.start, span.stop),), sample.index, sample.source)


def unsupervised(sample: Sample) -> Sample:
    """The same tokens without targets, for a rank that runs them only to keep step with the others."""
    segments = [segment._replace(supervised=np.zeros_like(segment.supervised)) for segment in sample.segments]
    return Sample(tuple(segments), sample.index, sample.source)
