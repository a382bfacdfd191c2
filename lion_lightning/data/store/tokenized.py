"""The tokens of one source on disk, read without loading them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from lion_lightning.data.reports.row_messages import RowMessages
from lion_lightning.data.sources.readers import Numbers
from lion_lightning.data.store.runs import Runs
from lion_lightning.data.store.shards import (
    Shard,
    read_shard,
    shard_path,
)
from lion_lightning.types import SampleSegment


class TokenBatches:
    """Tokenized examples in Arrow batches.

    Columns of numbers are put together on each access, so that none is kept for the length of a training.

    Args:
        shards: The batches, with counts of the rows that they were made of.

    Attributes:
        raw_rows: Rows of the source that were read.
        skipped_rows: How many of them a transform turned into no example.
        tokens: Hash of all tokens and targets, in their order.
        messages: Counted messages about the rows.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        batches: list[Any] = []
        self.raw_rows = self.skipped_rows = 0
        self.messages = RowMessages()
        tokens = blake2b(digest_size=16)
        for shard in shards:
            batches += shard.batches
            self.raw_rows += shard.rows
            self.skipped_rows += shard.skipped
            self.messages.add(shard.messages)
            tokens.update(shard.tokens.encode())
        self.tokens = tokens.hexdigest()
        self._starts = list(accumulate(map(len, batches), initial=0))
        self._offsets = [batch["input_ids"].offsets.to_numpy() for batch in batches]
        self._ids = [batch["input_ids"].values.to_numpy() for batch in batches]
        self._masks = [batch["supervised"].values for batch in batches]
        self._runs = [Runs(batch["runs"]) for batch in batches]
        self._where = [batch["where"] for batch in batches]
        self._batches = batches

    def __len__(self) -> int:
        """Number of examples."""
        return int(self._starts[-1])

    @property
    def segment_offsets(self) -> Numbers:
        """``(examples + 1,)`` first segment of each example, among those of all; the last is their number."""
        return self._list_offsets("segment_lengths")

    @property
    def segment_lengths(self) -> npt.NDArray[np.int32]:
        """``(segments,)`` tokens of each segment: of a document, or of a prompt and its answers."""
        return np.concatenate([np.empty(0, np.int32), *(b["segment_lengths"].values.to_numpy() for b in self._batches)])

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """``(segments,)`` score or label of each answer; NaN where that is unknown, and for roots."""
        return np.concatenate([np.empty(0), *(batch["values"].values.to_numpy() for batch in self._batches)])

    @property
    def pair_offsets(self) -> Numbers:
        """``(examples + 1,)`` first pair of each example, among those of all; the last is their number."""
        return self._list_offsets("pairs")

    @property
    def pairs(self) -> npt.NDArray[np.int32]:
        """``(pairs, 2)`` positions of chosen and rejected among the answers of their example."""
        flat = [batch["pairs"].values.values.to_numpy() for batch in self._batches]
        return np.concatenate([np.empty(0, np.int32), *flat]).reshape(-1, 2)

    @property
    def digests(self) -> npt.NDArray[np.uint64]:
        """``(examples, 2)`` 128-bit hash of each example's content."""
        return self._words("digest")

    @property
    def groups(self) -> npt.NDArray[np.uint64]:
        """``(examples, 2)`` 128-bit hash that examples of one prompt share; of a document its digest."""
        return self._words("group")

    @property
    def longest(self) -> int:
        """Most tokens that one sequence has: a document, or a prompt with one of its answers."""
        return longest_sequence(self.segment_lengths, self.segment_offsets)

    @property
    def digest(self) -> str:
        """Hash of the examples' contents, in their order: equal wherever equal examples lie."""
        return blake2b(self.digests.tobytes(), digest_size=16).hexdigest()

    def segment(self, row: int, start: int, stop: int) -> SampleSegment:
        """Tokens ``start`` to ``stop`` of example ``row``; the ids are a read-only view of the file."""
        batch = bisect_right(self._starts, row) - 1
        first = int(self._offsets[batch][row - self._starts[batch]])
        mask = self._masks[batch].slice(first + start, stop - start)
        ids = self._ids[batch][first + start : first + stop]
        segment = SampleSegment(ids, mask.to_numpy(zero_copy_only=False))
        return self._runs[batch].put(segment, row - self._starts[batch], start, stop)

    def where(self, row: int) -> str:
        """File and line of the raw row that example ``row`` was made from."""
        batch = bisect_right(self._starts, row) - 1
        return str(self._where[batch][row - self._starts[batch]].as_py())

    def find(self, ids: npt.NDArray[np.int32]) -> int | None:
        """The first example that holds one of these tokens; all examples are read."""
        if not len(ids):
            return None
        for start, offsets, tokens in zip(self._starts, self._offsets, self._ids, strict=False):
            places = np.flatnonzero((tokens >= ids.min()) & (tokens <= ids.max()))  # mostly none: special ids are last
            places = places[np.isin(tokens[places], ids)]
            if len(places):
                return start + int(np.searchsorted(offsets, places[0], side="right")) - 1
        return None

    def targets(self, rows: Numbers, starts: Numbers, stops: Numbers, roots: npt.NDArray[np.bool_]) -> Numbers:
        """Number of tokens trained in each span, ``(spans,)``.

        The first token of a root has nothing to be predicted from; that of an answer has the prompt's last token.

        Args:
            rows: ``(spans,)`` example of each span, in any order.
            starts: ``(spans,)`` first token of each, counted through the example.
            stops: ``(spans,)`` one past the last token of each.
            roots: ``(spans,)`` whether each is of a document or a prompt, and not of an answer.
        """
        counts: Numbers = np.zeros(len(rows), dtype=np.int64)
        trainable = np.minimum(starts + roots, stops)
        order = np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows[order], self._starts)
        for batch, (low, high) in enumerate(pairwise(bounds)):  # the masks of one batch at a time are held as bytes
            if low < high:
                spans = order[low:high]
                total = np.concatenate([[0], np.cumsum(self._masks[batch].to_numpy(zero_copy_only=False))])
                first = self._offsets[batch][rows[spans] - self._starts[batch]].astype(np.int64)
                counts[spans] = total[first + stops[spans]] - total[first + trainable[spans]]
        return counts

    def _list_offsets(self, name: str) -> Numbers:
        """Offsets of the lists of a column, one after the other through all batches."""
        sizes = [np.diff(batch[name].offsets.to_numpy()) for batch in self._batches]
        offsets: Numbers = np.cumsum(np.concatenate([[0], *sizes]), dtype=np.int64)
        return offsets

    def _words(self, name: str) -> npt.NDArray[np.uint64]:
        """128-bit hashes as two words each, ``(examples, 2)``."""
        parts = [np.frombuffer(batch[name].buffers()[1], np.uint64, 2 * len(batch)) for batch in self._batches]
        return np.concatenate([np.empty(0, np.uint64), *parts]).reshape(-1, 2)


def longest_sequence(lengths: npt.NDArray[np.int32], offsets: Numbers) -> int:
    """Most tokens of a document, or of a prompt with one of its answers.

    Args:
        lengths: ``(segments,)`` tokens of each segment.
        offsets: ``(examples + 1,)`` first segment of each example, a document or a prompt.
    """
    roots = offsets[:-1]
    before = np.repeat(lengths[roots], np.diff(offsets))  # tokens of each segment's prompt
    before[roots] = 0
    return int((before + lengths).max(initial=0))


class TokenTable(TokenBatches):
    """Tokenized examples of one source on disk, memory-mapped: a row costs no memory until it is read.

    Args:
        folder: The store, as :func:`~lion_lightning.data.store.tokenize.tokenize` made it: Arrow files with manifests.
        check: Whether to read all files once, to see that they are what was written.

    Raises:
        FileNotFoundError: Some of its shards were not made yet.
        ValueError: A file is not what its manifest says.
    """

    def __init__(self, folder: Path, check: bool = False) -> None:
        """Map the files and compare them with their manifests."""
        self.folder = folder
        first = next(folder.glob("[0-9]*-of-*.json"), None)
        if first is None:
            raise FileNotFoundError(f"{folder}: no tokenized data")
        count = int(first.stem.rpartition("-")[2])
        super().__init__([read_shard(shard_path(folder, number, count), check) for number in range(count)])

    @override
    def __reduce__(self) -> tuple[type[TokenTable], tuple[Path]]:
        """Travel to worker processes as a path."""
        return TokenTable, (self.folder,)
