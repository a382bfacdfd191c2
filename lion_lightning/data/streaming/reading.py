"""Raw rows of a source in blocks, from any place in it."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from lion_lightning.cache import hash_json
from lion_lightning.data.sources.local_files import find_splits
from lion_lightning.data.sources.opening import opened
from lion_lightning.data.sources.readers import ChainedRows, DatasetRows, FileRows, Row, Rows
from lion_lightning.data.sources.source import Source
from lion_lightning.data.sources.text_files import SPLITS, JsonLines, Table, line_row
from lion_lightning.errors import first_line

BLOCK_ROWS = 64
"""Rows that are read and encoded together."""
_SAMPLE_BYTES = 4096


class Line(NamedTuple):
    """A line of a file, which a worker parses."""

    file: JsonLines
    number: int
    text: bytes

    def parse(self) -> Row:
        """Its row."""
        return line_row(self.text, self.file.path, self.number)


@dataclass(frozen=True)
class Place:
    """Where the next row of a source is.

    Attributes:
        part: Number of the file, in the order of the epoch.
        row: Rows (lines of a text file) of it that were read.
        byte: Where the next begins, in a file that can be searched.
        state: State of an iterable that has one.
    """

    part: int = 0
    row: int = 0
    byte: int = 0
    state: Any = None


class RawBlock(NamedTuple):
    """Rows of a source.

    Attributes:
        rows: The rows, or lines to parse.
        after: Where the source goes on behind them.
    """

    rows: Sequence[Row | Line]
    after: Place


class Part(Protocol):
    """A file, or another part of a source."""

    def blocks(self, place: Place) -> Iterator[RawBlock]:
        """The rows from a place on."""

    def fingerprint(self) -> Any:
        """Plain data that other rows would change."""


@dataclass(frozen=True)
class LinesPart:
    """A file with a JSON object per line; one that is not compressed is read from the byte where the next line is."""

    file: JsonLines

    def blocks(self, place: Place) -> Iterator[RawBlock]:
        """The lines that are not blank, from a place on."""
        lines = self._lines(place)
        while taken := list(islice(lines, BLOCK_ROWS)):
            yield RawBlock([line for line, _ in taken], taken[-1][1])

    def _lines(self, place: Place) -> Iterator[tuple[Line, Place]]:
        number, byte = place.row, place.byte
        with opened(self.file.path) as lines:
            if isinstance(getattr(lines, "raw", None), FileIO):
                lines.seek(byte)
            else:  # compressed, or in another encoding
                for _ in islice(lines, number):
                    pass
            for line in lines:
                number, byte = number + 1, byte + len(line)
                if line.strip():
                    yield Line(self.file, number, line), replace(place, row=number, byte=byte)

    def fingerprint(self) -> Any:
        """Identity of the file."""
        return _file_identity(self.file.path)


@dataclass(frozen=True)
class RowsPart:
    """Any other rows that can be read by number: a parquet file, a table, a JSON document, a saved data set."""

    rows: Rows

    def blocks(self, place: Place) -> Iterator[RawBlock]:
        """The rows from a place on."""
        rows, number = self._from(place.row), place.row
        while taken := list(islice(rows, BLOCK_ROWS)):
            number += len(taken)
            yield RawBlock(taken, replace(place, row=number))

    def _from(self, start: int) -> Iterator[Row]:
        if isinstance(self.rows, Table):  # whose rows would be counted first
            yield from islice(self.rows.records(), start, None)
            return
        count = len(self.rows)
        step = 1000 if isinstance(self.rows, DatasetRows) else max(count, 1)
        for first in range(start, count, step):
            yield from self.rows.take(np.arange(first, min(first + step, count)))

    def fingerprint(self) -> Any:
        """Identity of a file; of a data set its fingerprint."""
        if isinstance(self.rows, FileRows):
            return _file_identity(self.rows.path)
        return self.rows.dataset._fingerprint if isinstance(self.rows, DatasetRows) else self.rows.fingerprint()


@dataclass(frozen=True)
class IterablePart:
    """Rows of an iterable. One with ``state_dict`` and ``load_state_dict`` is resumed by them, others are skipped.

    Attributes:
        make: Makes the iterable.
        name: Its name, for errors.
        fix: What to do about its errors.
    """

    make: Callable[[], Iterable[Mapping[str, Any]]]
    name: str
    fix: str = "fix the iterable"

    def blocks(self, place: Place) -> Iterator[RawBlock]:
        """The rows from a place on.

        Raises:
            ValueError: It fails, or yields something else than rows.
        """
        made, number = self._made(), place.row
        has_state = hasattr(made, "state_dict") and hasattr(made, "load_state_dict")
        if has_state and place.state is not None:
            made.load_state_dict(place.state)
        rows = self._rows(made, number, skip=0 if has_state else number)
        while taken := list(islice(rows, BLOCK_ROWS)):
            number += len(taken)
            yield RawBlock(taken, replace(place, row=number, state=made.state_dict() if has_state else None))

    def _made(self) -> Any:
        try:
            return self.make()
        except Exception as error:
            raise ValueError(f"{self.name}: {first_line(error, with_type=True)}; {self.fix}") from error

    def _rows(self, made: Any, number: int, skip: int) -> Iterator[Row]:
        """The rows behind those to skip; ``number`` is that of the first."""
        try:
            rows = iter(made)
        except TypeError as error:
            raise ValueError(f"{self.name}: {first_line(error, with_type=True)}; {self.fix}") from error
        for _ in tqdm(range(skip), f"skip rows of {self.name}", unit=" rows", delay=2):
            next(rows, None)
        for count in itertools.count(number):
            where = f"{self.name}[{count}]"
            try:
                values = next(rows)
            except StopIteration:
                return
            except Exception as error:
                raise ValueError(f"{where}: {first_line(error, with_type=True)}; {self.fix}") from error
            if not isinstance(values, Mapping):
                raise ValueError(f"{where}: a row must be a dict with named columns, not {type(values).__name__}")
            yield Row(where, values)

    def fingerprint(self) -> Any:
        """The name: nothing else is known without reading."""
        return self.name


@dataclass(frozen=True)
class SourceReader:
    """The rows of a streamed source, in blocks.

    Attributes:
        parts: Its files, in the order in which they are read.
    """

    parts: Sequence[Part]

    @classmethod
    def of(cls, source: Source) -> SourceReader:
        """Open a source; no row is read.

        Raises:
            ValueError: Nothing is at the path, or the split is unknown.
        """
        return cls(_parts(source))

    def shuffled(self, seed: Sequence[int]) -> SourceReader:
        """The files in another order."""
        parts = list(self.parts)
        random.Random(hash_json(list(seed))).shuffle(parts)
        return SourceReader(parts)

    def describe(self) -> str:
        """Number of its files, or the name of the iterable."""
        first = self.parts[0]
        return first.name if isinstance(first, IterablePart) else f"{len(self.parts):,} file(s)"

    def fingerprint(self) -> str:
        """Hash of what the files are told by."""
        return hash_json([part.fingerprint() for part in self.parts])

    def blocks(self, place: Place) -> Iterator[RawBlock]:
        """The rows from a place on.

        Raises:
            ValueError: A row cannot be read.
        """
        for number in range(place.part, len(self.parts)):
            start = place if number == place.part else Place(number)
            yield from self.parts[number].blocks(start)


def _file_identity(path: Path) -> list[Any]:
    """Name and size of a file, and a hash of its first, middle and last bytes: all of it would have to be read."""
    size, parts = path.stat().st_size, []
    with path.open("rb") as file:
        for start in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
            file.seek(start)
            parts.append(file.read(_SAMPLE_BYTES))
    return [path.name, size, hashlib.sha256(b"".join(parts)).hexdigest()]


def _parts(source: Source) -> list[Part]:
    if source.iterable is not None:
        return [IterablePart(source.iterable, source.label)]
    local = find_splits(source.path)
    if local is None:
        fix = "nothing on disk has this name; check path, split, subset and the network, or whether the hub has it"
        return [IterablePart(partial(_hub_rows, source), source.path, fix)]
    if source.subset or source.revision:
        raise ValueError(f"{source.path}: `subset` and `revision` are for data sets on the hub; leave them out")
    name = source.split if source.split in local else SPLITS.get(source.split, source.split)
    if name not in local:
        raise ValueError(f"{source.path}: no split {source.split!r}; the splits here are: {', '.join(sorted(local))}")
    return [LinesPart(rows) if isinstance(rows, JsonLines) else RowsPart(rows) for rows in _files(local[name])]


def _files(rows: Rows) -> Iterator[Rows]:
    if isinstance(rows, ChainedRows):
        for part in rows.parts:
            yield from _files(part)
    else:
        yield rows


def _hub_rows(source: Source) -> Any:
    import datasets

    made = datasets.load_dataset(
        source.path, source.subset, split=source.split, revision=source.revision, streaming=True
    )
    # Decoding a picture or a sound opens any path or address that the row names.
    return made.decode(False) if made.features else made
