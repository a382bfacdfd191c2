"""Data files as lines of UTF-8: decompressed and decoded by their first bytes, whatever their names say."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any

from lion_lightning.errors import first_line


def _open_zstd(path: Path) -> Any:
    import pyarrow as pa

    return BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))


COMPRESSIONS: dict[str, tuple[bytes, Callable[[Path], Any]]] = {
    ".gz": (b"\x1f\x8b", gzip.open),
    ".bz2": (b"BZh", bz2.open),
    ".xz": (b"\xfd7zXZ\0", lzma.open),
    ".zst": (b"\x28\xb5\x2f\xfd", _open_zstd),
}
"""The first bytes of a compressed file, and how it is opened, by the last ending of its name."""

PARQUET = b"PAR1"
"""The first bytes of a parquet file."""

JSON = re.compile(rb'(?:\xef\xbb\xbf)?[\s[]*\{\s*(?:"|\})|(?:\xef\xbb\xbf)?\s*\[\s*\]')
"""The beginning of a JSON object, or of a list of them, which no file of another kind begins with."""

_HEAD = 4096
_MARKS = {  # those of UTF-32 first: the mark of UTF-16 is a part of one of them
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class _Utf8Lines:
    """Text of a file in another encoding, which begins with a byte order mark, as lines of UTF-8."""

    def __init__(self, file: Any, encoding: str) -> None:
        self._text = TextIOWrapper(file, encoding, newline="\n")

    def __iter__(self) -> Iterator[bytes]:
        return (line.encode() for line in self._text)

    def read(self, size: int = -1) -> bytes:
        return self._text.read(size).encode()


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The text of a file as UTF-8: an iterator of lines, as bytes, with a method ``read``.

    Raises:
        ValueError: It is truncated, not compressed as its name says, or neither UTF-8 nor begun with the byte order
            mark of UTF-16 or UTF-32.
    """
    ending, opener = _decompression(path)
    encoding = "UTF-8"
    try:
        with opener(path) as file:
            start = file.peek(8)[:8]
            if any(start.startswith(magic) for magic, _ in COMPRESSIONS.values()):
                raise ValueError(f"{path}: compressed twice; decompress it once")
            encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), encoding)
            if encoding == "UTF-8" and b"\0" in start[:4]:
                raise ValueError(
                    f"{path}: not UTF-8 but, by its first bytes, binary or UTF-16 without a byte order mark; save the "
                    "file as UTF-8"
                )
            yield file if encoding == "UTF-8" else _Utf8Lines(file, encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not {encoding.upper()} ({error.reason}); save the file as UTF-8") from error
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # of the disk, and not of the decompression
            raise
        raise ValueError(f"{path}: not a complete {ending} file ({first_line(error)}); write it again") from error


def _decompression(path: Path) -> tuple[str, Callable[[Path], Any]]:
    """The compression of a file, and how to open it: by the first bytes, and by its name where they say nothing."""
    with path.open("rb") as file:
        start = file.read(_HEAD)
    for ending, (magic, opener) in COMPRESSIONS.items():
        if start.startswith(magic):
            return ending, opener
    named = COMPRESSIONS.get(path.suffix.lower())
    if named is None or JSON.match(start):
        return path.suffix, lambda path: path.open("rb")
    return path.suffix, named[1]


def head_of(path: Path) -> bytes:
    """The first bytes of a file's text, or of a parquet file; empty where there is no text."""
    with path.open("rb") as file:
        start = file.read(_HEAD)
    if start.startswith(PARQUET):
        return start
    with suppress(ValueError), opened(path) as file:
        return bytes(file.read(_HEAD))
    return b""
