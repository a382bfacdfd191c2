"""The files of a token store: each has the examples of a part of a source, and a manifest."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lion_lightning.cache import checksum, read_object
from lion_lightning.data.reports.row_messages import RowMessages
from lion_lightning.data.store.runs import RUNS
from lion_lightning.errors import first_line

SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),
        ("segment_lengths", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float64())),
        ("pairs", pa.list_(pa.list_(pa.int32(), 2))),
        ("runs", RUNS),
        ("digest", pa.binary(16)),
        ("group", pa.binary(16)),
        ("where", pa.string()),
    ]
)
"""Columns of a shard. ``values`` has one number per segment, NaN for roots; ``pairs`` has positions among the answers.
``runs`` are of tokens that are alike, each up to ``stop``; null without weights or reasoning."""

_MANIFEST = {"rows": int, "skipped": int, "examples": int, "bytes": int, "crc32": str, "tokens": str, "messages": dict}
"""Keys of a shard's manifest: counts, size, checksum, a hash of its tokens, counted messages about the rows."""

DAMAGE = (ValueError, pa.ArrowException)
"""Errors of a shard whose file is not what was written."""


class Shard(NamedTuple):
    """One file of a store.

    Attributes:
        rows: Raw rows that it was made of.
        skipped: How many of them a transform turned into no example.
        batches: The examples, memory-mapped.
        tokens: Hash of their tokens and targets.
        messages: Counted messages about the rows.
    """

    rows: int
    skipped: int
    batches: list[Any]
    tokens: str
    messages: RowMessages


def shard_path(folder: Path, number: int, count: int) -> Path:
    """Path of shard ``number`` of ``count`` in the folder of a store."""
    return folder / f"{number:05}-of-{count:05}.arrow"


def manifest_path(path: Path) -> Path:
    """Path of a shard's manifest; the shard is complete once it is there."""
    return path.with_suffix(".json")


def read_shard(path: Path, check: bool = False) -> Shard:
    """Map a shard, and compare it with its manifest.

    Args:
        path: From :func:`shard_path`.
        check: Whether to read the file once, to see that its bytes are those that were written; else its size tells.

    Raises:
        FileNotFoundError: It was not made yet.
        ValueError: The file is not what its manifest says.
    """
    manifest = _manifest(manifest_path(path))
    size = path.stat().st_size if path.exists() else 0
    if size != manifest["bytes"]:
        raise ValueError(f"{path}: {size} bytes, but the manifest says {manifest['bytes']}")
    if check and checksum(path) != manifest["crc32"]:
        raise ValueError(f"{path}: its bytes are not those that were written")
    batches = read_batches(path)
    if sum(map(len, batches)) != manifest["examples"]:
        raise ValueError(f"{path}: rows are missing; the manifest says {manifest['examples']}")
    return Shard(
        manifest["rows"], manifest["skipped"], batches, manifest["tokens"], RowMessages.of(manifest["messages"])
    )


def read_batches(path: Path) -> list[Any]:
    """The record batches of a shard, memory-mapped."""
    try:
        with pa.memory_map(str(path)) as file:  # what is read stays mapped, without a file descriptor
            return list(pa.ipc.open_stream(file).read_all().to_batches())
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: no token store ({first_line(error)})") from error


def tokens_digest(batches: Iterable[Any]) -> str:
    """Hash of a shard's tokens, of which of them are targets and how much they count, and of the segments."""
    ids, targets, lengths, runs = (blake2b(digest_size=16) for _ in range(4))
    for batch in batches:
        ids.update(batch["input_ids"].values.to_numpy())
        targets.update(batch["supervised"].values.to_numpy(zero_copy_only=False))
        lengths.update(batch["segment_lengths"].values.to_numpy())
        lengths.update(np.diff(batch["segment_lengths"].offsets.to_numpy()))
        runs.update(batch["runs"].is_valid().to_numpy(zero_copy_only=False))
        for column in batch["runs"].flatten().flatten():
            runs.update(column.to_numpy(zero_copy_only=False))
    digests = [digest.digest() for digest in (ids, targets, lengths, runs)]
    return blake2b(b"".join(digests), digest_size=16).hexdigest()


def _manifest(path: Path) -> dict[str, Any]:
    manifest = read_object(path, "the manifest of a shard", "remove the store's folder")
    missing = [name for name in _MANIFEST if not isinstance(manifest.get(name), _MANIFEST[name])]
    if missing:
        raise ValueError(f"{path}: the manifest of a shard has no {missing[0]}; remove the store's folder")
    for texts in manifest["messages"].values():
        if not (isinstance(texts, dict) and all(isinstance(count, int) for count in texts.values())):
            raise ValueError(f"{path}: the manifest of a shard counts no messages; remove the store's folder")
    return manifest
