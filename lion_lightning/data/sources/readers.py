"""Raw rows of files and data sets, each with its file and line."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from lion_lightning.cache import hash_file, hash_json
from lion_lightning.errors import first_line

Numbers = npt.NDArray[np.int64]


class BrokenRowError(ValueError):
    """A row of a file cannot be read, though those around it can.

    Attributes:
        raw: Text or value of the file in its place.
    """

    def __init__(self, message: str, raw: Any) -> None:
        super().__init__(message)
        self.raw = raw


class Row(NamedTuple):
    """A raw row.

    Attributes:
        where: File and line, ``path:line``, or ``name[row]``.
        content: Its columns, or the error of a row that cannot be read.
    """

    where: str
    content: Mapping[str, Any] | BrokenRowError

    @property
    def values(self) -> Mapping[str, Any]:
        """Its columns.

        Raises:
            BrokenRowError: It cannot be read; the message starts with the row's file and line.
        """
        if isinstance(self.content, BrokenRowError):
            raise self.content
        return self.content


class Rows(ABC):
    """A countable set of raw rows that can be read in part."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def take(self, numbers: Numbers) -> Iterator[Row]:
        """Read the rows of these numbers, which must ascend.

        A row that cannot be read raises its error when its values are asked for, so that the others can be read.

        Raises:
            ValueError: The file cannot be read any further; the message starts with its path.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the content and of the path; equal fingerprints give equal rows."""


@dataclass(frozen=True)
class FileRows(Rows):
    """Rows of one file; the base of the readers below."""

    path: Path

    @override
    def fingerprint(self) -> str:
        """Hash of the path and of the file's bytes."""
        return hash_json([str(self.path), hash_file(self.path)])


class Parquet(FileRows):
    """A parquet file, read in batches; row groups without a wanted row are not read."""

    @override
    def __len__(self) -> int:
        """Number of rows, from the file's footer."""
        return int(self._file.metadata.num_rows)

    @cached_property
    def _file(self) -> Any:
        import pyarrow.parquet

        with self._damage():
            file = pyarrow.parquet.ParquetFile(self.path)
        names = file.schema_arrow.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{self.path}: two columns are called {twice[0]!r}; rename one of them")
        return file

    @override
    def take(self, numbers: Numbers) -> Iterator[Row]:
        start = 0
        with self._damage():
            for group in range(self._file.metadata.num_row_groups):
                stop = start + self._file.metadata.row_group(group).num_rows
                if len(_between(numbers, start, stop)):
                    for batch in self._file.iter_batches(batch_size=1000, row_groups=[group]):
                        inside = _between(numbers, start, start + len(batch))
                        for number, values in zip(inside.tolist(), batch.take(inside - start).to_pylist(), strict=True):
                            yield Row(f"{self.path}[{number}]", values)
                        start += len(batch)
                start = stop

    @contextmanager
    def _damage(self) -> Iterator[None]:
        """Name the file where pyarrow finds it damaged, which it says in errors of many kinds."""
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno:  # of the disk
                raise
            raise ValueError(
                f"{self.path}: not a complete parquet file ({first_line(error)}); write it again"
            ) from error


@dataclass(frozen=True)
class DatasetRows(Rows):
    """A ``datasets.Dataset``: from the hub, or saved with ``save_to_disk``.

    Attributes:
        dataset: The data set.
        name: Name of the data set, for errors.
    """

    dataset: Any
    name: str

    def __post_init__(self) -> None:
        """Leave images, audio and so on as they are stored: decoding one opens any path or address that it names."""
        for feature in _features(self.dataset.info.features):
            if getattr(feature, "decode", False) and type(feature).__name__ != "Json":
                feature.decode = False

    @override
    def __len__(self) -> int:
        return len(self.dataset)

    @override
    def take(self, numbers: Numbers) -> Iterator[Row]:
        # In memory: without it `select` writes a file of indices next to the data, which may be read-only.
        chosen = self.dataset.with_format(None).select(numbers, keep_in_memory=True)
        for number, values in zip(numbers.tolist(), chosen, strict=True):
            yield Row(f"{self.name}[{number}]", values)

    @override
    def fingerprint(self) -> str:
        """Hash of the name and of the fingerprint that ``datasets`` keeps."""
        return hash_json([self.name, self.dataset._fingerprint])


@dataclass(frozen=True)
class Slice(Rows):
    """The rows ``start`` to ``stop`` of other rows."""

    rows: Rows
    start: int
    stop: int

    @override
    def __len__(self) -> int:
        return self.stop - self.start

    @override
    def take(self, numbers: Numbers) -> Iterator[Row]:
        """Read the rows of these numbers, counted from ``start``."""
        return self.rows.take(numbers + self.start)

    @override
    def fingerprint(self) -> str:
        """Hash of the other rows and of the bounds."""
        return hash_json([self.rows.fingerprint(), self.start, self.stop])


@dataclass(frozen=True)
class ChainedRows(Rows):
    """Several rows one after the other."""

    parts: Sequence[Rows]

    @override
    def __len__(self) -> int:
        """Number of rows of all parts."""
        return sum(map(len, self.parts))

    @override
    def take(self, numbers: Numbers) -> Iterator[Row]:
        """Read the rows of these numbers, counted through all parts."""
        start = 0
        for part in self.parts:
            inside = _between(numbers, start, start + len(part))
            if len(inside):
                yield from part.take(inside - start)
            start += len(part)

    @override
    def fingerprint(self) -> str:
        """Hash of the parts."""
        return hash_json([part.fingerprint() for part in self.parts])


def _features(feature: Any) -> Iterator[Any]:
    """The features of a data set's columns, those within lists and structs, too."""
    if isinstance(feature, Mapping | list | tuple):
        inner = feature.values() if isinstance(feature, Mapping) else feature
        yield from chain.from_iterable(map(_features, inner))
    elif hasattr(feature, "feature"):
        yield from _features(feature.feature)
    else:
        yield feature


def _between(numbers: Numbers, start: int, stop: int) -> Numbers:
    return numbers[np.searchsorted(numbers, start) : np.searchsorted(numbers, stop)]
