"""Rows of text files: JSON lines, JSON documents and tables, compressed or not."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from lion_lightning.data.formats.unused_columns import is_harmless
from lion_lightning.data.sources.json_text import BrokenJSONError, is_message, parse_json, require_shallow
from lion_lightning.data.sources.opening import opened
from lion_lightning.data.sources.readers import BrokenRowError, FileRows, Numbers, Row

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Names of splits in names of files and folders, as ``datasets`` reads them, and in JSON documents."""

csv.field_size_limit(2**31 - 1)  # a cell may hold a long conversation; 128 KiB are Python's own limit

_EXCEL_DELIMITER = re.compile(r'"?sep=(.)"?\s*')  # a first line that tells Excel what separates cells


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        number += line.count(b"\n", 0, error.start)
        raise ValueError(f"{path}:{number}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


# --- JSON


class JsonLines(FileRows):
    """A file with one JSON object per line; blank lines are skipped, and lines that are not wanted are not parsed."""

    @override
    def __len__(self) -> int:
        """Number of lines that are not blank."""
        return self._count

    @cached_property
    def _count(self) -> int:
        return sum(1 for _ in _lines(self.path))

    @override
    def take(self, numbers: Numbers) -> Iterator[Row]:
        for line, text in compress(_lines(self.path), _wanted(numbers)):
            yield line_row(text, self.path, line)


@dataclass(frozen=True)
class JsonDocument(FileRows):
    """Rows of a file that is one JSON value; it is held in memory.

    Attributes:
        split: Which of the document's splits these are.
        values: The rows.
    """

    split: str = "train"
    values: list[Any] = field(default_factory=list, repr=False, compare=False)

    @override
    def __len__(self) -> int:
        return len(self.values)

    @override
    def take(self, numbers: Numbers) -> Iterator[Row]:
        for number in numbers.tolist():  # a copy each, which a transform may change
            yield _row(f"{self.path}[{number}]", deepcopy(self.values[number]))


def read_json_lines(path: Path) -> dict[str, FileRows]:
    """The split of a ``.jsonl`` file: an object per line, or one array of rows, as ``.json`` files have it."""
    lines = _lines(path)
    first, second = next(lines, None), next(lines, None)
    if first is None or not first[1].lstrip().startswith(b"["):
        return {"train": JsonLines(path)}
    try:
        value = parse_json(first[1].decode())
    except ValueError:
        is_array = second is not None  # the array goes on there
    else:  # an array of messages on a line is a row
        rows = [row for row in value if isinstance(row, dict)] if second is None else []
        is_array = bool(rows) and not all(map(is_message, value))
    return read_json(path) if is_array else {"train": JsonLines(path)}


def read_json(path: Path) -> dict[str, FileRows]:
    """The splits of a ``.json`` file, which holds an object per line or one value.

    The value is an array of rows, ``{"data": [...]}``, arrays by split (``{"train": [...], "test": [...]}``), or one
    row.
    """
    lines = _lines(path)
    first, second = next(lines, None), next(lines, None)
    if first is None:
        return {"train": JsonLines(path)}
    if second is not None:  # an object per line, if the first line is a complete value
        with suppress(ValueError):
            if isinstance(parse_json(first[1].decode()), dict | list):
                return {"train": JsonLines(path)}
    with opened(path) as file:
        value = _parse(file.read(), path, 1, "the file must hold one array of objects, or one object a line")
    splits = _rows_by_split(value, path)
    return {split: JsonDocument(path, split, values) for split, values in splits.items()}


_ABOUT_ROWS = ("name", "title", "description", "info", "meta", "metadata", "count", "total", "status")
"""Keys next to the ``data`` of a document that may be dropped."""


def _rows_by_split(value: Any, path: Path) -> dict[str, list[Any]]:
    if isinstance(value, list):  # of rows, or of the messages of one
        return {"train": [value] if value and all(map(is_message, value)) else value}
    if not isinstance(value, dict):
        raise ValueError(f"{path}: the file must hold one array of objects, not {type(value).__name__}")
    if isinstance(value.get("data"), list):
        for name in value:
            if not (name in ("data", *_ABOUT_ROWS) or is_harmless(name)):
                raise ValueError(
                    f"{path}: {name!r} is next to the rows in `data` and would be lost; put it into the rows"
                )
        return {"train": value["data"]}
    if value and all(name in SPLITS and isinstance(rows, list) for name, rows in value.items()):
        return value
    return {"train": [value]}


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers."""
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if text.strip():
                yield number, text


def _text(path: Path) -> Iterator[str]:
    """All lines, as text."""
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            yield _decoded(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, path, number)


def _parse(text: bytes, path: Path, line: int, fix: str) -> Any:
    """Parse JSON that starts on this line of the file."""
    try:
        return parse_json(_decoded(text.removeprefix(codecs.BOM_UTF8), path, line))
    except BrokenJSONError as error:
        raise ValueError(f"{path}:{line + error.line}: broken JSON ({error}); {fix}") from error


def parse_line(text: bytes, path: Path, line: int) -> dict[str, Any]:
    """The JSON object on a line of a file, whose path and number are for errors."""
    return dict(line_row(text, path, line).values)


def line_row(text: bytes, path: Path, line: int) -> Row:
    """The row on a line of a file; see :func:`parse_line`."""
    where = f"{path}:{line}"
    try:
        value = _parse(text.strip(), path, line, "each line must hold one complete JSON object")
    except ValueError as error:
        return Row(where, BrokenRowError(str(error), text.decode(errors="replace").strip()))
    return _row(where, value)


def _row(where: str, value: Any) -> Row:
    try:
        require_shallow(value)
    except BrokenJSONError as error:
        return Row(where, BrokenRowError(f"{where}: {error}; fix the row", None))
    if isinstance(value, list) and value and all(map(is_message, value)):
        value = {"messages": value}  # ShareGPT as a list of conversations
    if not isinstance(value, dict):
        message = f"{where}: a row must be a JSON object with named columns, not {type(value).__name__}"
        return Row(where, BrokenRowError(message, value))
    return Row(where, value)


def _wanted(numbers: Numbers) -> bytes:
    """True for each row that is wanted, up to the last one that is: nothing behind it is read."""
    wanted = np.zeros(int(numbers.max(initial=-1)) + 1, dtype=bool)
    wanted[numbers] = True
    return wanted.tobytes()


# --- tables


@dataclass(frozen=True)
class Table(FileRows):
    """A file of cells under a line of names. All cells are text; an empty one is null.

    Attributes:
        delimiter: Separator of cells; the line of names decides where it has another one instead.
    """

    delimiter: str = ","

    @override
    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        return sum(1 for _ in self.records())

    @override
    def take(self, numbers: Numbers) -> Iterator[Row]:
        yield from compress(self.records(), _wanted(numbers))

    def records(self) -> Iterator[Row]:
        """All rows, in one pass."""
        lines, before = _text(self.path), 0
        header = next(lines, "")
        if named := _EXCEL_DELIMITER.fullmatch(header):
            header, before = next(lines, ""), 1
        delimiter = named[1] if named else self._delimiter(header)
        # `question, answer`: a space behind the comma is part neither of a name nor of the cells below
        is_spaced = f"{delimiter} " in re.sub(r'"[^"]*"', "", header)
        reader = csv.reader(chain([header], lines), delimiter=delimiter, strict=True, skipinitialspace=is_spaced)
        line = before + 1
        try:
            names = [name.strip() for name in next(reader, [])]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{self.path}:{line}: two columns are called {twice[0]!r}; rename one of them")
            line = before + reader.line_num + 1
            for cells in reader:
                if cells:  # no blank line
                    yield self._row(f"{self.path}:{line}", names, cells)
                line = before + reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{self.path}:{line}: {error}; quote cells as CSV files do") from error

    def _delimiter(self, header: str) -> str:
        """Separator of the names: that of the file's kind, or else one that stands between them."""
        others = ";\t|" if self.delimiter == "," or ", " in header else ";,|"
        found = [mark for mark in (self.delimiter, *others) if mark in header]
        return found[0] if found else self.delimiter

    def _row(self, where: str, names: list[str], cells: list[str]) -> Row:
        if len(cells) != len(names):
            message = f"{where}: {len(cells)} cells, but {len(names)} columns are named; fix the row"
            return Row(where, BrokenRowError(message, cells))
        return Row(where, {name: cell or None for name, cell in zip(names, cells, strict=True)})
