"""Loader of packed batches of a stream, which resumes at the very next batch."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from lion_lightning.data.packing.best_fit import Packing
from lion_lightning.data.packing.loader import collate_rows, unsupervised
from lion_lightning.data.reports.source_report import SourceReport
from lion_lightning.data.streaming.duplicates import RecentHashes
from lion_lightning.data.streaming.feed import BlockFeed
from lion_lightning.data.streaming.mixing import Cursor, StreamMixture
from lion_lightning.data.streaming.reading import Place
from lion_lightning.data.streaming.streamed import StreamedSources
from lion_lightning.data.streaming.windows import PackedRow, Window, WindowedRows
from lion_lightning.distributed.same_settings import flat
from lion_lightning.types import PackedBatch

logger = logging.getLogger(__name__)

_KEPT_BATCHES = 1024
"""A state can be set back by so many batches, to an earlier optimizer step."""


def _warn(lines: Sequence[str]) -> None:
    for line in lines:
        logger.warning("%s", line)


class StreamLoader:
    """Packed batches of streamed sources, for one rank; like ``PackedLoader`` it has a state, but no length.

    The rows of an epoch are one sequence, which follows from the data, the settings and the seed alone. Micro-batch
    ``i`` holds the next ``batch_size`` of them and goes to rank ``i % world_size``. Each rank reads and encodes all
    documents, since no row is known before the documents around it are, and collates its own rows; so neither ranks nor
    workers change what is trained, and the state of one rank is that of all.

    A state holds where the sources stood before the window of the present batch, and how many batches were handed out.
    A resumed run draws that window again.

    Args:
        streamed: The sources.
        packing: How documents share rows.
        capacity: Tokens of a row.
        batch_size: Rows of a micro-batch.
        shuffle: Whether files are read in another order each epoch, and windows are shuffled anew.
        seed: Seed of the order.
        rank: This process's rank among the data-parallel ones.
        world_size: Number of data-parallel processes.
        num_workers: Processes that encode ahead.
        lookahead: Batches that the consumer has read and not trained, as Lightning does with a loader without a length.
        settings: Settings that decide the rows, by name, to tell a checkpoint of other data from one of this.
        warn: Logs warnings about the rows, each once; called when the first window has been read.

    Attributes:
        sampler: The loader itself; Lightning looks for ``set_epoch`` here.
        epoch: The present epoch.
    """

    batch_sampler = None

    def __init__(
        self,
        streamed: StreamedSources,
        *,
        packing: Packing,
        capacity: int,
        batch_size: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        lookahead: int = 0,
        settings: Mapping[str, Any] | None = None,
        warn: Callable[[Sequence[str]], None] = _warn,
    ) -> None:
        self.streamed, self.packing, self.capacity = streamed, packing, capacity
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.rank, self.world_size, self.num_workers, self.lookahead = rank, world_size, num_workers, lookahead
        self.settings = dict(settings or {})
        self.sampler = self
        self._warn = warn
        self._resumed = False
        self._finished: int | None = None
        self._begin_epoch(0)

    @classmethod
    def of(
        cls, streamed: StreamedSources, trainer: Any, *, settings: Mapping[str, Any], shuffle: bool, **options: Any
    ) -> StreamLoader:
        """A loader for a trainer.

        Args:
            streamed: The sources.
            trainer: That trains on it; None for none.
            settings: A data module's settings that decide its batches.
            shuffle: See the class.
            **options: Further arguments of the class.
        """
        # The rows do not follow from the size of a batch, nor from the folder of files whose names and sizes are known.
        free = re.compile(r"data\.batch_size|data\.(sources|validation)\.\d+\.path")
        known = {name: value for name, value in flat("data", settings) if not free.fullmatch(name)}
        # Lightning reads a batch ahead where it knows no number of batches.
        lookahead = int(isinstance(getattr(trainer, "limit_train_batches", 0), float))
        known |= {**streamed.identity(), "shuffled": shuffle}
        return cls(streamed, settings=known, shuffle=shuffle, lookahead=lookahead, **options)

    @property
    def reports(self) -> list[SourceReport]:
        """Counts of each source in the present epoch, as far as it was read."""
        return [cursor.report for cursor in self._cursors if cursor.report is not None]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; another than the present begins at its first batch."""
        if epoch not in (self.epoch, self._finished):
            self._finished = None
            self._begin_epoch(epoch)

    def __iter__(self) -> Iterator[PackedBatch]:
        """Micro-batches of the present epoch; after :meth:`load_state_dict`, once, only those still to come.

        A generator, so that nothing is read before the first ``next``.
        """
        if not self._resumed:
            self._begin_epoch(self.epoch)
        self._resumed = False
        window, done = self._windows[-1], self._rows_at(self._batches)
        feed = self._open(window)
        try:
            rows = self._rows(feed, window)
            for _ in islice(rows, done - window["rows"]):
                pass
            while step := list(islice(rows, self.batch_size * self.world_size)):
                yield self._batch(step)
        finally:
            feed.close()
        self._length = self._batches
        for report in self.reports if self.rank == 0 else ():
            logger.info("train, all of the stream in epoch %d: %s", self.epoch, report)

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer stands, and what it needs to go on there."""
        return {
            "epoch": self.epoch,
            "batches": self._batches if self._length else max(0, self._batches - self.lookahead),
            "length": self._length,
            "origin": list(self._origin),
            "rows_of_a_step": self.batch_size * self.world_size,
            "windows": list(self._windows),
            "hashes": self._hashes.state(),
            "settings": dict(self.settings),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the last batch that was trained before the state was saved, in that epoch.

        Raises:
            ValueError: The state stands within an epoch, and settings or files that decide its rows have changed.
        """
        changes = self._changes(state["settings"])
        if 0 < state["length"] <= state["batches"]:
            self._begin_epoch(state["epoch"] + 1)
            self._finished = state["epoch"]
        elif changes and state["batches"]:
            raise ValueError(
                f"the checkpoint stands after batch {state['batches']} of epoch {state['epoch']} of a stream, and its "
                f"rows have changed ({'; '.join(changes)}): some would be repeated or lost. Resume with the old "
                "settings and files, or start a new run from the checkpoint's weights."
            )
        else:
            self._resume(state)
        if changes and self.rank == 0:
            logger.warning(
                "goes on with other data or settings of it than the checkpoint's, from here on: %s", "; ".join(changes)
            )

    # --- where the stream stands

    def _begin_epoch(self, epoch: int) -> None:
        self.epoch, self._batches, self._length, self._resumed = epoch, 0, 0, False
        self._origin = (0, 0)  # a batch, and the rows before it; others follow from the rows of a step
        self._cursors = [Cursor(Place()) for _ in self.streamed.readers]
        cursors = [cursor.state() for cursor in self._cursors]
        self._windows: list[dict[str, Any]] = [{"number": 0, "rows": 0, "cursors": cursors, "hashes": 0}]
        self._hashes = RecentHashes(self.streamed.settings.remember)

    def _resume(self, state: Mapping[str, Any]) -> None:
        self._begin_epoch(state["epoch"])
        batch, rows = state["origin"]
        self._origin = (batch, rows)
        if state["rows_of_a_step"] != self.batch_size * self.world_size and state["batches"]:
            self._origin = (state["batches"], rows + (state["batches"] - batch) * state["rows_of_a_step"])
            if self.rank == 0:
                logger.warning(
                    "the stream goes on at its row %d with %d rows in a batch of all ranks, where there were %d before",
                    self._origin[1],
                    self.batch_size * self.world_size,
                    state["rows_of_a_step"],
                )
        self._batches, self._resumed = state["batches"], True
        done = self._rows_at(self._batches)
        self._windows = [window for window in state["windows"] if window["rows"] <= done]
        if not self._windows:
            raise ValueError(
                f"the stream's state does not reach back to batch {self._batches}; resume from another one"
            )
        self._hashes.load_state(state["hashes"], self._windows[-1]["hashes"])

    def _changes(self, before: Mapping[str, Any]) -> list[str]:
        now = self.settings
        names = [name for name in now | dict(before) if before.get(name) != now.get(name)]
        return [f"{name} was {before.get(name, 'nothing')}, is {now.get(name, 'nothing')}" for name in names]

    def _rows_at(self, batch: int) -> int:
        """Rows of all ranks before a batch."""
        first, rows = self._origin
        return rows + (batch - first) * self.batch_size * self.world_size

    # --- rows and batches

    def _open(self, window: Mapping[str, Any]) -> BlockFeed:
        """The blocks of all sources from the start of a window on."""
        self._cursors = [Cursor.of(state, self.streamed.encoder.filters.report) for state in window["cursors"]]
        order = [self.seed, self.epoch] if self.shuffle else []
        blocks = []
        for number, (reader, cursor) in enumerate(zip(self.streamed.readers, self._cursors, strict=True)):
            shuffled = reader.shuffled([*order, number]) if order else reader
            blocks.append(shuffled.blocks(cursor.place))
        weights = [source.weight or 1.0 for source in self.streamed.sources]
        return BlockFeed(blocks, self.streamed.encoder, weights, self.num_workers)

    def _rows(self, feed: BlockFeed, window: Mapping[str, Any]) -> Iterator[PackedRow]:
        """All rows from the start of a window on; a window's start is kept for states when its first row comes."""
        writes = self.rank == 0
        epoch = self.epoch if self.shuffle else 0
        seed = [self.seed, epoch] if self.shuffle else [self.seed]
        for path in self.streamed.bad_rows() if writes and window["number"] == 0 else ():
            path.unlink(missing_ok=True)  # of an earlier run
        mixture = StreamMixture(self.streamed, feed, self._cursors, self._hashes, self.capacity, writes, epoch)
        number, count = window["number"], window["rows"]
        size = self.streamed.settings.window
        rows = WindowedRows(mixture, self.packing, self.capacity, size, seed, number, show_progress=writes)
        for row in rows:
            if row.first and row.window.number > number:
                self._keep(row.window, count)
            if row.first and row.window.number == 0:
                self._warn(self.streamed.warnings(self.reports))
            yield row
            count += 1
        if not count:
            counts = " | ".join(map(str, self.reports))
            raise ValueError(f"the streamed sources give nothing to train on ({counts}); fix what leaves it out")

    def _keep(self, window: Window, rows: int) -> None:
        """Keep where a window starts, and forget earlier ones that no state can go back to."""
        self._windows.append({"number": window.number, "rows": rows, **window.start})
        oldest = self._rows_at(self._batches - _KEPT_BATCHES)
        while len(self._windows) > 1 and self._windows[1]["rows"] <= oldest:
            del self._windows[0]
        self._hashes.forget(self._windows[0]["hashes"])

    def _batch(self, step: Sequence[PackedRow]) -> PackedBatch:
        """This rank's micro-batch. Behind the last row it repeats the first rank's, and supervises nothing."""
        self._batches += 1
        own = step[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
        samples = [row.samples() for row in own or step[: self.batch_size]]
        if not own:
            samples = [[unsupervised(sample) for sample in row] for row in samples]
        return collate_rows(samples, self.capacity)
