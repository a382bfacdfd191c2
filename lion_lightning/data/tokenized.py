"""The tokens of one source on disk: made once, found again by content, read without loading them."""

from __future__ import annotations

import json
import logging
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from lion_lightning import __version__
from lion_lightning.cache import cache_folder, replacing, writing
from lion_lightning.data.digests import content_digest, group_digest
from lion_lightning.data.readers import Numbers, Rows, digest
from lion_lightning.data.sources import Source
from lion_lightning.types import Piece

logger = logging.getLogger(__name__)

STORE_VERSION = 2
"""Raise it when the same input would give another store; older stores are then no longer found."""

_BATCH = 512
_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),
        ("pieces", pa.list_(pa.int32())),
        ("digest", pa.binary(16)),
        ("group", pa.binary(16)),
        ("margin", pa.float64()),
        ("where", pa.string()),
    ]
)


class Encoder(Protocol):
    """What reads raw rows and tokenises them: ``ChatEncoder`` for documents, ``PairEncoder`` for pairs."""

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str], /) -> Sequence[Any]:
        """Examples that a raw row holds, under the names that ``columns`` maps known columns to."""

    def pieces(self, examples: Sequence[Any], where: Sequence[str], /) -> Sequence[tuple[Piece, ...]]:
        """The pieces of each example, equally many for all: the first is the root, and the parent of all others."""

    def fingerprint(self) -> str:
        """Hash of everything that decides what the other two return."""


class TokenTable:
    """Tokenised examples of one source, memory-mapped: a row costs no memory until it is read.

    Args:
        path: The Arrow file, as :func:`tokenise` wrote it, with its manifest beside it.

    Attributes:
        pieces: ``(examples, pieces)`` int32, tokens of each piece: of a document, or of prompt, chosen and rejected.
        digests: ``(examples, 2)`` uint64, 128-bit hash of each example's content.
        groups: ``(examples, 2)`` uint64, 128-bit hash that pairs of one prompt share; of a document its digest.
        margins: ``(examples,)`` float64, by how much chosen scores above rejected; NaN where that is unknown.
        raw_rows: Rows of the source that were read.
        skipped_rows: How many of them a transform turned into no example.

    Raises:
        ValueError: The file is not what its manifest says.
    """

    def __init__(self, path: Path) -> None:
        """Map the file and check it against its manifest."""
        self.path = path
        manifest = json.loads(_manifest_path(path).read_text("utf-8"))
        if path.stat().st_size != manifest["bytes"]:
            raise ValueError(f"{path}: {path.stat().st_size} bytes, but the manifest says {manifest['bytes']}")
        batches = pa.ipc.open_stream(pa.memory_map(str(path))).read_all().to_batches()
        if sum(map(len, batches)) != manifest["examples"]:
            raise ValueError(f"{path}: rows are missing; the manifest says {manifest['examples']}")
        self.raw_rows: int = manifest["rows"]
        self.skipped_rows: int = manifest["skipped"]
        self._starts = [0, *np.cumsum([len(batch) for batch in batches]).tolist()]
        self._offsets = [batch["input_ids"].offsets.to_numpy() for batch in batches]
        self._ids = [batch["input_ids"].values.to_numpy() for batch in batches]
        self._masks = [batch["supervised"].values for batch in batches]
        self._places = [batch["where"] for batch in batches]
        counts = [batch["pieces"].values.to_numpy().reshape(len(batch), -1) for batch in batches]
        self.pieces = np.concatenate(counts) if counts else np.empty((0, 1), np.int32)
        self.digests, self.groups = _words(batches, "digest"), _words(batches, "group")
        self.margins = np.concatenate([np.empty(0), *(batch["margin"].to_numpy() for batch in batches)])

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.pieces)

    def __reduce__(self) -> tuple[type[TokenTable], tuple[Path]]:
        """Travel to worker processes as a path."""
        return TokenTable, (self.path,)

    @property
    def longest(self) -> int:
        """Most tokens that one sequence has: a document, or a prompt with one of its answers."""
        return int((self.pieces[:, 0] + self.pieces[:, 1:].max(axis=1, initial=0)).max(initial=0))

    @property
    def digest(self) -> str:
        """Hash of the examples' contents, in their order: equal wherever equal examples lie."""
        return blake2b(self.digests.tobytes(), digest_size=16).hexdigest()

    def piece(self, row: int, start: int, stop: int) -> Piece:
        """Tokens ``start`` to ``stop`` of example ``row``; the ids are a read-only view of the file."""
        batch = bisect_right(self._starts, row) - 1
        first = int(self._offsets[batch][row - self._starts[batch]])
        mask = self._masks[batch].slice(first + start, stop - start)
        return Piece(self._ids[batch][first + start : first + stop], mask.to_numpy(zero_copy_only=False))

    def where(self, row: int) -> str:
        """Place of the raw row that example ``row`` was made from."""
        batch = bisect_right(self._starts, row) - 1
        return str(self._places[batch][row - self._starts[batch]].as_py())

    def targets(self, rows: Numbers, starts: Numbers, stops: Numbers) -> Numbers:
        """Number of tokens trained in each span, ``(documents, pieces)``.

        The first token of a root has nothing to be predicted from; that of an answer has the prompt's last token.

        Args:
            rows: ``(documents,)`` example of each document, ascending.
            starts: ``(documents, pieces)`` first token of each span.
            stops: ``(documents, pieces)`` one past the last token of each.
        """
        counts = np.zeros(starts.shape, dtype=np.int64)
        trainable = np.minimum(starts + (np.arange(starts.shape[1]) == 0), stops)
        bounds = np.searchsorted(rows, self._starts)
        for batch, (low, high) in enumerate(pairwise(bounds)):
            if low < high:
                total = np.concatenate([[0], np.cumsum(self._masks[batch].to_numpy(zero_copy_only=False))])
                first = self._offsets[batch][rows[low:high] - self._starts[batch]].astype(np.int64)[:, None]
                counts[low:high] = total[first + stops[low:high]] - total[first + trainable[low:high]]
        return counts


def tokenise(source: Source, encoder: Encoder, cache_dir: str | Path | None = None) -> TokenTable:
    """Tokenise a source, or open what an earlier run left of the same content.

    Args:
        source: What to read.
        encoder: How to read, tokenise and mask its rows.
        cache_dir: Folder of the stores; by default ``$LION_CACHE``, else ``lion_lightning`` in the user's cache folder.

    Raises:
        ValueError: The source cannot be read, a row is wrong (the message names it), or the folder cannot be written.
    """
    rows = source.open()
    key = {"version": [STORE_VERSION, __version__], "rows": rows.fingerprint(), "encoder": encoder.fingerprint()}
    path = cache_folder("tokens", cache_dir) / f"{digest(key | source.identity())}.arrow"
    return _found(path) or _written(path, source, rows, encoder)


def _found(path: Path) -> TokenTable | None:
    if not _manifest_path(path).exists():
        return None
    try:
        return TokenTable(path)
    except (OSError, KeyError, ValueError) as error:  # Arrow's own errors are OSErrors or ValueErrors
        logger.warning("The tokenised store is damaged and is made again: %s", error)
        return None


def _written(path: Path, source: Source, rows: Rows, encoder: Encoder) -> TokenTable:
    """Write under another name and rename: a killed run leaves no half store, and the last of two writers wins."""
    draft = path.with_name(f".{path.stem}.{uuid4().hex}")
    with writing(path.parent, "tokenised data"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = pa.OSFile(str(draft), "wb")
    try:
        counts = _write(file, source, rows, encoder)
        with writing(path.parent, "tokenised data"):
            os.replace(draft, path)
            with replacing(_manifest_path(path)) as manifest:
                manifest.write_text(json.dumps(counts | {"bytes": path.stat().st_size}), "utf-8")
    finally:
        draft.unlink(missing_ok=True)
    return TokenTable(path)


def _write(file: Any, source: Source, rows: Rows, encoder: Encoder) -> dict[str, int]:
    counts = {"rows": 0, "skipped": 0, "examples": 0}
    with file, pa.ipc.new_stream(file, _SCHEMA) as stream:
        for places, examples in _batches(source, rows, encoder, counts):
            batch = _record_batch(encoder.pieces(examples, places), examples, places)
            with writing(source.label, "tokenised data"):
                stream.write_batch(batch)
    return counts


def _batches(
    source: Source, rows: Rows, encoder: Encoder, counts: dict[str, int]
) -> Iterator[tuple[list[str], list[Any]]]:
    chosen = source.choose(len(rows))
    places: list[str] = []
    examples: list[Any] = []
    for row in tqdm(rows.take(chosen), desc=f"tokenise {source.label}", total=len(chosen), unit=" rows", delay=2):
        made = source.examples(row, encoder.read)
        counts["rows"] += 1
        counts["skipped"] += not made
        counts["examples"] += len(made)
        places += [row.where] * len(made)
        examples += made
        if len(examples) >= _BATCH:
            yield places, examples
            places, examples = [], []
    if examples:
        yield places, examples


def _record_batch(samples: Sequence[tuple[Piece, ...]], examples: Sequence[Any], places: Sequence[str]) -> Any:
    lengths = [[len(piece.input_ids) for piece in pieces] for pieces in samples]
    flat = list(chain.from_iterable(samples))
    offsets = np.cumsum([0, *map(sum, lengths)], dtype=np.int32)
    ids = np.concatenate([piece.input_ids for piece in flat]).astype(np.int32)
    mask = np.concatenate([piece.supervised for piece in flat]).astype(bool)
    margins = [getattr(example, "margin", None) for example in examples]
    columns = [
        *(pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (ids, mask)),
        pa.array(lengths, pa.list_(pa.int32())),
        pa.array([content_digest(example) for example in examples], pa.binary(16)),
        pa.array([group_digest(example) for example in examples], pa.binary(16)),
        pa.array([np.nan if margin is None else margin for margin in margins], pa.float64()),
        pa.array(places, pa.string()),
    ]
    return pa.record_batch(columns, schema=_SCHEMA)


def _manifest_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _words(batches: Sequence[Any], name: str) -> npt.NDArray[np.uint64]:
    """128-bit hashes as two words each, ``(examples, 2)``."""
    parts = [np.frombuffer(batch[name].buffers()[1], np.uint64, 2 * len(batch)) for batch in batches]
    return np.concatenate([np.empty(0, np.uint64), *parts]).reshape(-1, 2)
