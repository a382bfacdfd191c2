"""Arrow files with a checksum: damage is found before anything is made of the content."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from lion_lightning.cache import atomic_write
from lion_lightning.errors import first_line

_NAME = b"lion crc-32 "
_BLANK = _NAME + b"--------"
_CHECKSUM = re.compile(_NAME + rb"[0-9a-f]{8}")

RESTORE = (
    "restore the file, or resume from a checkpoint of the end of the epoch before: the round is then sampled again"
)
"""How to fix a round that is missing or damaged."""


class DamagedFileError(ValueError):
    """The content of a file is not what was written."""


def write_table(path: Path, table: Any, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a table as an Arrow file, atomically.

    The checksum is computed with its own digits blanked. It is an entry of the schema, which an Arrow file holds
    twice: before and after the rows.

    Args:
        path: The file.
        table: What to write.
        metadata: Plain data about the table.

    Raises:
        OSError: The file cannot be written.
    """
    entries = {} if metadata is None else {"lion": json.dumps(metadata)}
    schema = table.schema.with_metadata({**entries, "checksum": _BLANK.decode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table.replace_schema_metadata(schema.metadata))
    content = bytearray(sink.getvalue().to_pybytes())
    checksum = _NAME + f"{zlib.crc32(content):08x}".encode()
    for start in {content.find(_BLANK), content.rfind(_BLANK)}:
        content[start : start + len(checksum)] = checksum
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def read_table(path: Path, schema: Any) -> tuple[Any, Any]:
    """Read a table and its metadata; the columns are views of the memory-mapped file.

    Args:
        path: From :func:`write_table`.
        schema: Columns that the table must have.

    Returns:
        The table, and its metadata or None.

    Raises:
        DamagedFileError: The content is not what was written.
        ValueError: The file is of another kind.
    """
    with pa.memory_map(str(path)) as file:  # the content stays mapped without a file descriptor
        content = file.read_buffer()
    try:
        checked = _checksum_fits(memoryview(content))
        with pa.ipc.open_file(content) as reader:
            table = reader.read_all()
        table.validate(full=True)
        metadata = json.loads((table.schema.metadata or {}).get(b"lion", b"null"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedFileError(f"{path}: damaged ({first_line(error)}); {RESTORE}") from error
    if not checked or not table.schema.equals(schema):
        raise ValueError(f"{path}: not a round of on-policy sampling; name a folder of rounds")
    return table, metadata


def _checksum_fits(content: memoryview) -> bool:
    """Compare both copies of the checksum with the content; False if there is none.

    Raises:
        ValueError: The checksum does not fit.
    """
    found = list(_CHECKSUM.finditer(content))
    if not found:
        return False
    value, stop = 0, 0
    for copy in dict.fromkeys([found[0], found[-1]]):  # a text among the rows may look like a checksum
        value = zlib.crc32(_BLANK, zlib.crc32(content[stop : copy.start()], value))
        stop = copy.end()
    value = zlib.crc32(content[stop:], value)
    if any(bytes(copy[0]) != _NAME + f"{value:08x}".encode() for copy in (found[0], found[-1])):
        raise ValueError("its checksum does not fit its content")
    return True
