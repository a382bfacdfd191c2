"""Arrow files that know their own checksum: one flipped bit anywhere is found before anything is made of them."""

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

_SEAL = b"lion crc-32 "
_BLANK = _SEAL + b"--------"
_SEALED = re.compile(_SEAL + rb"([0-9a-f]{8})")

_FIX = "bring it back, or resume from a checkpoint of the end of the epoch before: the round is then made again"


class DamagedFileError(ValueError):
    """A file is not what was written: cut short, changed or lost in part."""


def write_table(path: Path, table: Any, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a table as an Arrow file, which is there in full or not at all.

    The checksum is that of the file as it is with the checksum blanked out. Arrow files hold their schema twice, in
    front and at the end, and the checksum with it.

    Args:
        path: The file.
        table: What to write.
        metadata: What the file says about itself, as plain data.

    Raises:
        OSError: It cannot be written.
    """
    about = {} if metadata is None else {"lion": json.dumps(metadata)}
    schema = table.schema.with_metadata({**about, "checksum": _BLANK.decode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table.replace_schema_metadata(schema.metadata))
    content = bytearray(sink.getvalue().to_pybytes())
    seal = _SEAL + f"{zlib.crc32(content):08x}".encode()
    for place in {content.find(_BLANK), content.rfind(_BLANK)}:
        content[place : place + len(seal)] = seal
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def read_table(path: Path, schema: Any) -> tuple[Any, Any]:
    """The table of a file, and what the file says about itself; None if it says nothing.

    Args:
        path: From :func:`write_table`.
        schema: The columns that it must have.

    Raises:
        DamagedFileError: It is not what was written.
        ValueError: It is a file of another kind.
    """
    content = path.read_bytes()
    if not _is_whole(content):
        raise DamagedFileError(f"{path}: damaged (its checksum does not fit its content); {_FIX}")
    try:
        with pa.ipc.open_file(pa.py_buffer(content)) as reader:
            table = reader.read_all()
        about = json.loads((table.schema.metadata or {}).get(b"lion", b"null"))
        if table.schema.equals(schema):
            table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedFileError(f"{path}: damaged ({first_line(error)}); {_FIX}") from error
    if not table.schema.equals(schema):
        raise ValueError(f"{path}: not a round of on-policy sampling; name a folder of rounds")
    return table, about


def _is_whole(content: bytes) -> bool:
    """Whether the checksum fits. A file of an earlier version has none, and a cut one not its second copy."""
    found = list(_SEALED.finditer(content))
    if not found:
        return True
    blanked = bytearray(content)
    for place in (found[0], found[-1]):
        blanked[place.start() : place.end()] = _BLANK
    return all(zlib.crc32(blanked) == int(place[1], 16) for place in (found[0], found[-1]))
