"""Makes the tokens of one source, once for all runs: in parts, which ranks share, and which survive a kill."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from lion_lightning import __version__
from lion_lightning.cache import (
    atomic_write,
    cache_folder,
    checksum,
    explain_write_errors,
    hash_json,
    remove_stale_files,
)
from lion_lightning.data.reports.row_messages import collect_messages, collect_row_messages
from lion_lightning.data.sources.readers import Numbers, Row, Rows
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.digests import digests
from lion_lightning.data.store.tokenized import (
    DAMAGE,
    SCHEMA,
    TokenTable,
    manifest_path,
    read_batches,
    read_shard,
    shard_path,
    tokens_digest,
)
from lion_lightning.distributed.rendezvous import ALONE, WorkerGroup
from lion_lightning.types import SampleSegment

logger = logging.getLogger(__name__)

STORE_VERSION = 9
"""Raise it when the same input would give another store; older stores are then no longer found."""

_WHAT = "tokenized data"
_BATCH_EXAMPLES = 512
_PART_ROWS = 2048  # the fewest that are worth a file
_MOST_PARTS = 256


class Encoder(Protocol):
    """What reads raw rows and tokenizes them: ``ChatEncoder`` for documents, ``PairEncoder`` for pairs."""

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str], /) -> Sequence[Any]:
        """Examples that a raw row holds, under the names that ``columns`` maps known columns to."""

    def encode_samples(self, examples: Sequence[Any], where: Sequence[str], /) -> Sequence[tuple[SampleSegment, ...]]:
        """The pieces of each example, equally many for all: the first is the root, and the parent of all others."""

    def fingerprint(self) -> str:
        """Hash of everything that decides what the other two return."""


def tokenize(
    source: Source, encoder: Encoder, cache_dir: str | Path | None = None, workers: WorkerGroup = ALONE
) -> TokenTable:
    """Tokenize a source, or open what an earlier run left of the same content.

    Each rank of a workers makes some of the parts and then waits for the others', so all of them must call this while
    they take part in it. The store is the same, bit for bit, whatever their number; so is the error that a wrong row
    gives, on every rank. Parts that were finished are kept when a run is stopped.

    Args:
        source: What to read.
        encoder: How to read, tokenize and mask its rows.
        cache_dir: Folder of the stores; by default ``$LION_CACHE``, else ``lion_lightning`` in the user's cache folder.
        workers: This process among those that do it together.

    Raises:
        ValueError: The source cannot be read, a row is wrong (the message names it), the folder cannot be written, or
            ranks see other rows or have another encoder.
        RuntimeError: Another rank failed, for another reason than a row, or was lost.
    """
    rows = source.open()
    key = {"version": [STORE_VERSION, __version__], "rows": rows.fingerprint(), "encoder": encoder.fingerprint()}
    folder = cache_folder("tokens", cache_dir) / hash_json(key | source.identity())
    workers.require_same(f"{source.path}: files, tokenizer or transform", hash_json(source.description()), folder.name)
    if (table := _found(folder)) is not None:
        return table
    with explain_write_errors(folder, _WHAT):
        folder.mkdir(parents=True, exist_ok=True)
        remove_stale_files(*folder.parent.iterdir())
    _Work(source, rows, encoder, workers).make(_cut(source.choose(len(rows)), folder))
    return TokenTable(folder)


def _found(folder: Path) -> TokenTable | None:
    """The whole store, if it is there."""
    try:
        return TokenTable(folder, check=True)
    except FileNotFoundError:
        return None
    except DAMAGE as error:
        logger.warning("The tokenized store is damaged, and what is missing of it is made again: %s", error)
        return None


class _Part(NamedTuple):
    """Raw rows that lie in one file once they are tokenized. Which these are does not depend on the ranks."""

    path: Path
    numbers: Numbers

    @property
    def complaint(self) -> str:
        """Name of the note in which the rank that makes it says which of its rows is wrong."""
        return f"bad-{self.path.parent.name}-{self.path.stem}"

    def whole(self) -> bool:
        """Whether it is there, undamaged; while it is being replaced it is not."""
        try:
            return bool(read_shard(self.path, check=True))
        except (FileNotFoundError, *DAMAGE):
            return False


def _cut(numbers: Numbers, folder: Path) -> list[_Part]:
    count = min(-(-len(numbers) // _PART_ROWS), _MOST_PARTS)
    runs = np.array_split(numbers, count)
    return [_Part(shard_path(folder, number, count), run) for number, run in enumerate(runs)]


@dataclass(frozen=True)
class _Work:
    """The making of a store, as far as this rank is concerned."""

    source: Source
    rows: Rows
    encoder: Encoder
    workers: WorkerGroup

    def make(self, parts: Sequence[_Part]) -> None:
        """Make this rank's parts, and wait for the others'.

        They are looked at in order, so all ranks, and a single process, complain about the same row: the first.
        """
        self._make_mine(parts)
        for part in parts:
            self.workers.wait_until(partial(self._settled, part))
            if (complaint := self._complaint(part)).exists():
                raise ValueError(complaint.read_text("utf-8"))

    def _complaint(self, part: _Part) -> Path:
        return self.workers.messages / part.complaint

    def _settled(self, part: _Part) -> bool:
        """Whether there is anything to wait for any more."""
        return self._complaint(part).exists() or part.whole()

    def _make_mine(self, parts: Sequence[_Part]) -> None:
        todo = [part for part in self.workers.contiguous(parts) if not part.whole()]
        stream = self._read(todo)
        for part in todo:
            if self._given_up(parts, part):
                return
            try:
                _write(part.path, self._batches(islice(stream, len(part.numbers))), self.encoder)
            except ValueError as error:
                if self.workers.size == 1:
                    raise
                self.workers.send(part.complaint, str(error))

    def _given_up(self, parts: Sequence[_Part], part: _Part) -> bool:
        """Whether an earlier part cannot be made: then this one is of no use."""
        earlier = takewhile(lambda other: other is not part, parts)
        return any(self._complaint(other).exists() for other in earlier)

    def _read(self, parts: Sequence[_Part]) -> Iterator[Row]:
        """The rows of these parts, in one pass."""
        numbers = np.concatenate([np.empty(0, np.int64), *(part.numbers for part in parts)])
        rank, world = self.workers.rank, self.workers.size
        whose = f", share of rank {rank} of {world}" if world > 1 else ""
        what = f"tokenize {self.source.label}{whose}"
        return iter(tqdm(self.rows.take(numbers), what, len(numbers), unit=" rows", delay=2, disable=rank > 0))

    def _batches(self, rows: Iterable[Row]) -> Iterator[_Batch]:
        batch = _Batch()
        for row in rows:
            with collect_row_messages() as notes:
                made = self.source.examples(row, self.encoder.read)
            batch.add(row.where, made, skipped=not made and "left out" not in notes)
            if len(batch.examples) >= _BATCH_EXAMPLES:
                yield batch
                batch = _Batch()
        yield batch


@dataclass
class _Batch:
    """Examples that are encoded together, and the rows that they were made of."""

    rows: int = 0
    skipped: int = 0
    places: list[str] = field(default_factory=list)
    examples: list[Any] = field(default_factory=list)

    def add(self, where: str, made: Sequence[Any], skipped: bool) -> None:
        """Take in a row and the examples made of it, or that its transform skipped it."""
        self.rows += 1
        self.skipped += skipped
        self.places += [where] * len(made)
        self.examples += made


def _write(path: Path, batches: Iterable[_Batch], encoder: Encoder) -> None:
    """Write a part under another name and rename, the manifest last: a killed run leaves no half part."""
    counts: Counter[str] = Counter(rows=0, skipped=0, examples=0)
    with atomic_write(path) as temporary, _stream(temporary, path.parent) as write, collect_messages() as messages:
        for batch in batches:
            counts.update(rows=batch.rows, skipped=batch.skipped, examples=len(batch.examples))
            if batch.examples:
                write(_record_batch(encoder.encode_samples(batch.examples, batch.places), batch))
    tokens = tokens_digest(read_batches(path))
    manifest = {**counts, "bytes": path.stat().st_size, "crc32": checksum(path), "tokens": tokens, "messages": messages}
    with explain_write_errors(path.parent, _WHAT), atomic_write(manifest_path(path)) as temporary:
        temporary.write_text(json.dumps(manifest), "utf-8")


@contextmanager
def _stream(path: Path, folder: Path) -> Iterator[Callable[[Any], None]]:
    """A function that adds a record batch to a file.

    Only what it meets is said to be of the folder: what goes wrong in between, where rows are read, has another cause.
    """
    with explain_write_errors(folder, _WHAT):
        file = pa.OSFile(str(path), "wb")
        stream = pa.ipc.new_stream(file, SCHEMA)

    def write(batch: Any) -> None:
        with explain_write_errors(folder, _WHAT):
            stream.write_batch(batch)

    try:
        yield write
    finally:
        with explain_write_errors(folder, _WHAT):
            stream.close()
            file.close()


def _record_batch(samples: Sequence[tuple[SampleSegment, ...]], batch: _Batch) -> Any:
    lengths = [[len(piece.input_ids) for piece in pieces] for pieces in samples]
    flat = list(chain.from_iterable(samples))
    offsets = np.cumsum([0, *map(sum, lengths)], dtype=np.int32)
    ids = np.concatenate([piece.input_ids for piece in flat]).astype(np.int32)
    mask = np.concatenate([piece.supervised for piece in flat]).astype(bool)
    margins = [getattr(example, "margin", None) for example in batch.examples]
    columns = [
        *(pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (ids, mask)),
        pa.array(lengths, pa.list_(pa.int32())),
        *(pa.array(column, pa.binary(16)) for column in zip(*map(digests, batch.examples), strict=True)),
        pa.array([np.nan if margin is None else margin for margin in margins], pa.float64()),
        pa.array(batch.places, pa.string()),
    ]
    return pa.record_batch(columns, schema=SCHEMA)
