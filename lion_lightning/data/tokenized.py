"""The tokens of one source on disk: made once, found again by content, read without loading them."""

from __future__ import annotations

import json
import logging
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from lion_lightning import __version__
from lion_lightning.data.chat import ChatEncoder
from lion_lightning.data.formats import Conversation, Example
from lion_lightning.data.readers import Numbers, Rows, digest
from lion_lightning.data.sources import Source
from lion_lightning.types import Piece

logger = logging.getLogger(__name__)

STORE_VERSION = 1
"""Raise it when the same input would give another store; older stores are then no longer found."""

_BATCH = 512
_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),
        ("digest", pa.binary(16)),
        ("where", pa.string()),
    ]
)


class TokenTable:
    """Tokenised examples of one source, memory-mapped: a row costs no memory until it is read.

    Args:
        path: The Arrow file, as :func:`tokenise` wrote it, with its manifest beside it.

    Attributes:
        lengths: ``(examples,)`` int32, tokens of each example.
        digests: ``(examples, 2)`` uint64, 128-bit hash of each example's content.
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
        self.lengths = _concatenate([np.diff(offsets) for offsets in self._offsets], np.int32)
        words = [np.frombuffer(batch["digest"].buffers()[1], np.uint64, 2 * len(batch)) for batch in batches]
        self.digests = _concatenate(words, np.uint64).reshape(-1, 2)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.lengths)

    def __reduce__(self) -> tuple[type[TokenTable], tuple[Path]]:
        """Travel to worker processes as a path."""
        return TokenTable, (self.path,)

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
        """Number of tokens trained in each span; the first token of a span has nothing to be predicted from.

        Args:
            rows: ``(spans,)`` example of each span, ascending.
            starts: ``(spans,)`` first token of each.
            stops: ``(spans,)`` one past the last token of each.
        """
        counts = np.zeros(len(rows), dtype=np.int64)
        bounds = np.searchsorted(rows, self._starts)
        for batch, (low, high) in enumerate(pairwise(bounds)):
            if low < high:
                total = np.concatenate([[0], np.cumsum(self._masks[batch].to_numpy(zero_copy_only=False))])
                first = self._offsets[batch][rows[low:high] - self._starts[batch]].astype(np.int64)
                second = np.minimum(starts[low:high] + 1, stops[low:high])
                counts[low:high] = total[first + stops[low:high]] - total[first + second]
        return counts


def tokenise(source: Source, encoder: ChatEncoder, cache_dir: str | Path | None = None) -> TokenTable:
    """Tokenise a source, or open what an earlier run left of the same content.

    Args:
        source: What to read.
        encoder: How to encode and mask it.
        cache_dir: Folder of the stores; by default ``$LION_CACHE``, else ``lion_lightning`` in the user's cache folder.

    Raises:
        ValueError: The source cannot be read, a row is wrong (the message names it), or the folder cannot be written.
    """
    rows = source.open()
    key = {"version": [STORE_VERSION, __version__], "rows": rows.fingerprint(), "encoder": encoder.fingerprint()}
    path = cache_folder(cache_dir) / f"{digest(key | source.identity())}.arrow"
    return _found(path) or _written(path, source, rows, encoder)


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Folder of the tokenised stores."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache_dir or os.environ.get("LION_CACHE") or f"{root}/lion_lightning").expanduser() / "tokens"


def content_digest(example: Example) -> bytes:
    """16 bytes that two examples share if, and only if, their content is equal.

    How many turns count as prompt is left out: the same conversation, written in two forms, is a duplicate.
    """
    content = example._replace(prompt_turns=None) if isinstance(example, Conversation) else example
    text = json.dumps([type(example).__name__, content], sort_keys=True, separators=(",", ":"), default=str)
    return blake2b(text.encode(), digest_size=16).digest()


def _found(path: Path) -> TokenTable | None:
    if not _manifest_path(path).exists():
        return None
    try:
        return TokenTable(path)
    except (OSError, KeyError, ValueError) as error:  # Arrow's own errors are OSErrors or ValueErrors
        logger.warning("The tokenised store is damaged and is made again: %s", error)
        return None


def _written(path: Path, source: Source, rows: Rows, encoder: ChatEncoder) -> TokenTable:
    """Write under another name and rename: a killed run leaves no half store, and the last of two writers wins."""
    draft = path.with_name(f".{path.stem}.{uuid4().hex}")
    with _clear_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = pa.OSFile(str(draft), "wb")
    try:
        counts = _write(file, source, rows, encoder)
        with _clear_errors(path.parent):
            os.replace(draft, path)
            draft.write_text(json.dumps(counts | {"bytes": path.stat().st_size}), "utf-8")
            os.replace(draft, _manifest_path(path))
    finally:
        draft.unlink(missing_ok=True)
    return TokenTable(path)


def _write(file: Any, source: Source, rows: Rows, encoder: ChatEncoder) -> dict[str, int]:
    counts = {"rows": 0, "skipped": 0, "examples": 0}
    with file, pa.ipc.new_stream(file, _SCHEMA) as stream:
        for places, examples in _batches(source, rows, counts):
            batch = _record_batch(encoder.encode(examples, places), examples, places)
            with _clear_errors(source.label):
                stream.write_batch(batch)
    return counts


def _batches(source: Source, rows: Rows, counts: dict[str, int]) -> Iterator[tuple[list[str], list[Example]]]:
    chosen = source.choose(len(rows))
    places: list[str] = []
    examples: list[Example] = []
    for row in tqdm(rows.take(chosen), desc=f"tokenise {source.label}", total=len(chosen), unit=" rows", delay=2):
        made = source.examples(row)
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


def _record_batch(pieces: Sequence[Piece], examples: Sequence[Example], places: Sequence[str]) -> Any:
    offsets = np.cumsum([0, *(len(piece.input_ids) for piece in pieces)], dtype=np.int32)
    ids = np.concatenate([piece.input_ids for piece in pieces]).astype(np.int32)
    mask = np.concatenate([piece.supervised for piece in pieces]).astype(bool)
    digests = pa.array([content_digest(example) for example in examples], pa.binary(16))
    lists = [pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (ids, mask)]
    return pa.record_batch([*lists, digests, pa.array(places, pa.string())], schema=_SCHEMA)


def _manifest_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _concatenate(parts: Sequence[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


@contextmanager
def _clear_errors(folder: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fix = "name a folder that you can write in `cache_dir` or in the environment variable LION_CACHE"
        raise ValueError(f"{folder}: cannot write tokenised data ({error}); {fix}") from error
