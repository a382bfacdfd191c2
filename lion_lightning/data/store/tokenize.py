"""Tokenizes a source once for all runs, in shards that ranks share and that survive a kill."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

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
from lion_lightning.data.formats.pairing import PromptAnswers
from lion_lightning.data.reports.bad_rows import refuse_mostly_bad
from lion_lightning.data.reports.row_messages import collect_messages
from lion_lightning.data.sources.readers import Numbers, Row, Rows
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.digests import digests
from lion_lightning.data.store.example_batch import Encoder, ExampleBatch
from lion_lightning.data.store.runs import RUNS, runs_of
from lion_lightning.data.store.shards import (
    DAMAGE,
    SCHEMA,
    manifest_path,
    read_batches,
    read_shard,
    shard_path,
    tokens_digest,
)
from lion_lightning.data.store.tokenized import TokenTable
from lion_lightning.distributed.rendezvous import ALONE, WorkerGroup

logger = logging.getLogger(__name__)

STORE_VERSION = 13
"""Raise it when the same input would give another store; older stores are then no longer found."""

_WHAT = "tokenized data"
_BATCH_EXAMPLES = 512
_MIN_SHARD_ROWS = 2048
_MAX_SHARDS = 256


def tokenize(
    source: Source, encoder: Encoder, cache_dir: str | Path | None = None, workers: WorkerGroup = ALONE
) -> TokenTable:
    """Tokenize a source, or open what an earlier run left of the same content.

    Each worker makes some of the shards and then waits for the others', so all of them must call this. The store is the
    same, bit for bit, whatever their number; so is the error that a wrong row gives, on every rank. Shards that were
    finished are kept when a run is stopped.

    Args:
        source: Where the rows come from.
        encoder: How to read, tokenize and mask its rows.
        cache_dir: Folder of the stores; by default ``$LION_CACHE``, else ``lion_lightning`` in the user's cache folder.
        workers: The processes that share the work.

    Raises:
        ValueError: The source cannot be read, a row is wrong (the message names it), the folder cannot be written, or
            ranks see other rows or have another encoder.
        RuntimeError: Another rank failed, for another reason than a row, or was lost.
    """
    rows = source.open()
    key = {"version": [STORE_VERSION, __version__], "rows": rows.fingerprint(), "encoder": encoder.fingerprint()}
    folder = cache_folder("tokens", cache_dir) / hash_json(key | source.identity())
    workers.require_same(f"{source.path}: files, tokenizer or transform", hash_json(source.description()), folder.name)
    try:
        table = TokenTable(folder, check=True)
    except (FileNotFoundError, *DAMAGE) as error:
        if not isinstance(error, FileNotFoundError):  # else it was not made yet, or not wholly
            logger.warning("The tokenized store is damaged, and what is missing of it is made again: %s", error)
        with explain_write_errors(folder, _WHAT):
            folder.mkdir(parents=True, exist_ok=True)
            remove_stale_files(*folder.parent.iterdir())
        _StoreWriter(source, rows, encoder, workers).write(_shards(source.choose(len(rows)), folder))
        table = TokenTable(folder)
    _gather_bad_rows(table, source, workers)
    return table


def _gather_bad_rows(table: TokenTable, source: Source, workers: WorkerGroup) -> None:
    """Put the bad rows of all shards into one file; refuse a source that has more of them than of others."""
    if not table.messages["bad row"]:
        return
    path = table.messages.bad_rows = table.folder / "bad_rows.jsonl"
    if workers.rank == 0 and not path.exists():
        parts = sorted(table.folder.glob("*.bad.jsonl"))
        with explain_write_errors(table.folder, _WHAT), atomic_write(path) as temporary:
            temporary.write_text("".join(part.read_text("utf-8") for part in parts), "utf-8")
    refuse_mostly_bad(source.label, table.messages, table.raw_rows)


class _Shard(NamedTuple):
    """Raw rows that lie in one file once they are tokenized. Which these are does not depend on the ranks."""

    path: Path
    numbers: Numbers

    def is_complete(self) -> bool:
        """True if the file is there, undamaged; while it is being replaced it is not."""
        try:
            return bool(read_shard(self.path, check=True))
        except (FileNotFoundError, *DAMAGE):
            return False


def _shards(numbers: Numbers, folder: Path) -> list[_Shard]:
    count = min(-(-len(numbers) // _MIN_SHARD_ROWS), _MAX_SHARDS)
    parts = np.array_split(numbers, count)
    return [_Shard(shard_path(folder, index, count), part) for index, part in enumerate(parts)]


@dataclass(frozen=True)
class _StoreWriter:
    """Writes this rank's shards of a store."""

    source: Source
    rows: Rows
    encoder: Encoder
    workers: WorkerGroup

    def write(self, shards: Sequence[_Shard]) -> None:
        """Write this rank's shards, and wait for the others'.

        They are awaited in order, so all ranks, and a single process, raise the error of the same row: the first.
        """
        own = [shard for shard in self.workers.contiguous(shards) if not shard.is_complete()]
        stream = self._read(own)
        for shard in own:
            if any(self._error_file(other).exists() for other in shards if other.path < shard.path):
                break  # an earlier shard cannot be made, so this one is of no use
            try:
                _write(shard.path, self._batches(islice(stream, len(shard.numbers))), self.encoder)
            except ValueError as error:
                if self.workers.size == 1:
                    raise
                self.workers.send(self._error_file(shard).name, str(error))
        for shard in shards:
            self.workers.wait_until(partial(self._is_settled, shard))
            failure = self._error_file(shard)
            if failure.exists():
                raise ValueError(failure.read_text("utf-8"))

    def _is_settled(self, shard: _Shard) -> bool:
        return self._error_file(shard).exists() or shard.is_complete()

    def _error_file(self, shard: _Shard) -> Path:
        """Message in which the rank that writes a shard says which of its rows is wrong."""
        return self.workers.messages / f"bad-{shard.path.parent.name}-{shard.path.stem}"

    def _read(self, shards: Sequence[_Shard]) -> Iterator[Row]:
        """The rows of these shards, in one pass."""
        numbers = np.concatenate([np.empty(0, np.int64), *(shard.numbers for shard in shards)])
        rank, size = self.workers.rank, self.workers.size
        title = f"tokenize {self.source.label}" + (f", share of rank {rank} of {size}" if size > 1 else "")
        return iter(tqdm(self.rows.take(numbers), title, len(numbers), unit=" rows", delay=2, disable=rank > 0))

    def _batches(self, rows: Iterable[Row]) -> Iterator[ExampleBatch]:
        batch = ExampleBatch()
        for row in rows:
            batch.read(row, self.source, self.encoder)
            if len(batch.examples) >= _BATCH_EXAMPLES:
                yield batch
                batch = ExampleBatch()
        yield batch


def _write(path: Path, batches: Iterable[ExampleBatch], encoder: Encoder) -> None:
    """Write a shard under another name and rename, the manifest last: a killed run leaves no half shard."""
    counts: Counter[str] = Counter(rows=0, skipped=0, examples=0)
    bad: list[str] = []
    with atomic_write(path) as temporary, _stream(temporary, path.parent) as write, collect_messages() as messages:
        for batch in batches:
            if len(encoded := record_batch(batch, encoder)):
                write(encoded)
            counts.update(rows=batch.rows, skipped=batch.skipped, examples=len(encoded))
            bad += batch.bad
    tokens = tokens_digest(read_batches(path))
    manifest = {**counts, "bytes": path.stat().st_size, "crc32": checksum(path), "tokens": tokens, "messages": messages}
    with explain_write_errors(path.parent, _WHAT):
        if bad:
            with atomic_write(path.with_suffix(".bad.jsonl")) as temporary:
                temporary.write_text("".join(bad), "utf-8")
        with atomic_write(manifest_path(path)) as temporary:
            temporary.write_text(json.dumps(manifest), "utf-8")


@contextmanager
def _stream(path: Path, folder: Path) -> Iterator[Callable[[Any], None]]:
    """A function that adds a record batch to a file.

    Only errors of writing are explained by the folder; errors in between, where rows are read, have other causes.
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


def record_batch(batch: ExampleBatch, encoder: Encoder) -> Any:
    """The tokens of examples as an Arrow batch of the store's columns.

    Rows that cannot be encoded and may be left out are then no longer in the batch.

    Raises:
        ValueError: An example cannot be encoded; the message starts with its file and line.
    """
    samples = batch.encode(encoder)
    if not samples:
        return pa.RecordBatch.from_pylist([], schema=SCHEMA)
    lengths = [[len(segment.input_ids) for segment in segments] for segments in samples]
    flat = list(chain.from_iterable(samples))
    offsets = np.cumsum([0, *map(sum, lengths)], dtype=np.int32)  # of examples in the flat tokens
    ids = np.concatenate([segment.input_ids for segment in flat]).astype(np.int32)
    mask = np.concatenate([segment.supervised for segment in flat]).astype(bool)
    trees = [example if isinstance(example, PromptAnswers) else PromptAnswers((), ()) for example in batch.examples]
    content, group = zip(*map(digests, batch.examples), strict=True)
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(ids)),
        pa.ListArray.from_arrays(offsets, pa.array(mask)),
        pa.array(lengths, pa.list_(pa.int32())),
        pa.array([[math.nan, *tree.values] for tree in trees], SCHEMA.field("values").type),
        pa.array([tree.pairs for tree in trees], SCHEMA.field("pairs").type),
        pa.array([runs_of(segments) for segments in samples], RUNS),
        pa.array(content, pa.binary(16)),
        pa.array(group, pa.binary(16)),
        pa.array(batch.where, pa.string()),
    ]
    return pa.record_batch(columns, schema=SCHEMA)
