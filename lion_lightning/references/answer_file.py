"""A file of scored answers: blocks that one process wrote one after the other, memory-mapped.

Each block is a complete Arrow stream of one record batch, with a checksum of its values. So a file grows by a block
at a time, what was written stays as it is, and a process that is killed leaves at worst an unfinished block.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Keys = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]

SCHEMA = pa.schema([("key", pa.binary(16)), ("logps", pa.list_(pa.float32()))])
"""A row per answer: its key, and a log-prob for each of its targets."""

TARGET_BYTES, ANSWER_BYTES = 4, 20
"""Size on disk: a log-prob for each target; a key and an offset for each answer."""


class Block(NamedTuple):
    """Answers that were written together.

    Attributes:
        keys: ``(answers, 2)`` their keys.
        starts: ``(answers,)`` place of the first log-prob of each among the file's 4-byte words.
        counts: ``(answers,)`` number of targets of each.
    """

    keys: Keys
    starts: Counts
    counts: Counts


def to_block(keys: Keys, counts: Counts, values: npt.NDArray[np.float32]) -> Any:
    """The bytes of a block.

    Args:
        keys: ``(answers, 2)``.
        counts: ``(answers,)`` number of targets of each.
        values: ``(targets,)`` log-probs of all of them, one answer after the other.
    """
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    columns = [
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, pa.py_buffer(keys.tobytes())]),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)),
    ]
    schema = SCHEMA.with_metadata({"crc32": f"{zlib.crc32(values.data, _checksum_of(keys, offsets)):08x}"})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return sink.getvalue()


class AnswerFile:
    """The blocks of a file, read as far as they are complete.

    Args:
        path: The file.

    Attributes:
        words: The file as fp32 numbers, memory-mapped: a log-prob costs no memory until it is read.
        blocks: What the file holds, without its log-probs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.words: npt.NDArray[np.float32] = np.empty(0, np.float32)
        self.blocks: list[Block] = []
        self._stop = 0  # where the next block begins

    def read_on(self) -> bool:
        """Read the blocks that were written since the last call; True if there are any.

        Raises:
            ValueError: A block is not what was written, or the file holds none.
        """
        before = len(self.blocks)
        with pa.memory_map(str(self.path)) as file:  # what is read stays mapped, without a file descriptor
            content = file.read_buffer()
        while self._stop < content.size:
            try:
                batch, size = _parse(content.slice(self._stop))
            except (pa.ArrowException, OSError):
                break  # its writer was killed, or is at it now
            self.blocks.append(self._block(content, batch))
            self._stop += size
        if not self.blocks:  # the first block is there as soon as the file is
            raise ValueError("it holds no log-probs")
        if found := len(self.blocks) > before:
            self.words = np.frombuffer(content, np.float32, content.size // 4)
        return found

    def _block(self, content: Any, batch: Any) -> Block:
        batch.validate(full=True)
        if not batch.schema.equals(SCHEMA) or any(column.null_count for column in batch.columns):
            raise ValueError("it holds something else than log-probs")
        keys = np.frombuffer(batch.column(0).buffers()[1], np.uint64, 2 * len(batch)).reshape(-1, 2).copy()
        offsets = batch.column(1).offsets.to_numpy().copy()
        values = batch.column(1).values.buffers()[1]
        size = 4 * len(batch.column(1).values)
        start = values.address - content.address if size else 0  # in bytes of the file
        if start % 4 or not 0 <= start <= content.size - size:  # another buffer: the file compresses it
            raise ValueError("it holds something else than plain log-probs")
        checksum = self._checksum(start, size, _checksum_of(keys, offsets))
        if (batch.schema.metadata or {}).get(b"crc32") != f"{checksum:08x}".encode():
            raise ValueError("its content is not what was written")
        return Block(keys, start // 4 + offsets[:-1].astype(np.int64), np.diff(offsets).astype(np.int64))

    def _checksum(self, start: int, size: int, checksum: int) -> int:
        """Checksum of a part of the file, read and not mapped: mapped pages would count as memory of this process."""
        with self.path.open("rb") as file:
            file.seek(start)
            while size > 0 and (part := file.read(min(size, 2**20))):
                checksum = zlib.crc32(part, checksum)
                size -= len(part)
        return checksum


def _parse(content: Any) -> tuple[Any, int]:
    """The record batch of the block that the bytes begin with, as a view of them, and the block's size."""
    source = pa.BufferReader(content)
    with pa.ipc.open_stream(source) as reader:
        batches = list(reader)
    if len(batches) != 1:
        raise pa.ArrowInvalid(f"{len(batches)} record batches")
    return batches[0], source.tell()


def _checksum_of(keys: Keys, offsets: npt.NDArray[np.int32]) -> int:
    return zlib.crc32(offsets.data, zlib.crc32(keys.data))
