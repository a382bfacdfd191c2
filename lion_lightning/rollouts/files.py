"""Files of rollouts: Arrow tables with a checksum, so that damage is found before anything is read."""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from lion_lightning.cache import atomic_write, explain_write_errors
from lion_lightning.errors import first_line
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.types import Answer, Prompt

logger = logging.getLogger(__name__)

WRITABLE = "set `rounds_dir` of OnPolicySampling to a folder that you can write"
"""How to fix a round that cannot be written."""

SCHEMA = pa.schema(
    [
        ("where", pa.string()),
        ("text", pa.string()),
        ("messages", pa.string()),  # JSON, like row and by_judge: users decide what these hold
        ("row", pa.string()),
        ("original", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("group", pa.binary(16)),
        ("monitor", pa.bool_()),
        ("seed", pa.int64()),
        ("answers", pa.list_(pa.string())),
        ("finish_reasons", pa.list_(pa.string())),
        ("models", pa.list_(pa.string())),
        ("token_ids", pa.list_(pa.list_(pa.int32()))),
        ("num_added", pa.int32()),
        ("scores", pa.list_(pa.float64())),
        ("by_judge", pa.string()),
        ("right", pa.list_(pa.bool_())),
        ("final_answers", pa.list_(pa.string())),
        ("usable", pa.list_(pa.int32())),
        ("pairs", pa.list_(pa.list_(pa.int32()))),
        ("left_out", pa.string()),
    ]
)
"""Columns of a file of rollouts."""

_NAME = b"lion crc-32 "
_BLANK = _NAME + b"--------"
_CHECKSUM = re.compile(_NAME + rb"[0-9a-f]{8}")

RESTORE = (
    "restore the file, or resume from a checkpoint of the end of the epoch before: the round is then sampled again"
)
"""How to fix a round that is missing or damaged."""


class DamagedFileError(ValueError):
    """The content of a file is not what was written."""


class OtherVersionError(ValueError):
    """The columns of a file are those of another version of this package."""


def write_rollouts(path: Path, rollouts: Iterable[Rollout], metadata: Mapping[str, Any] | None = None) -> None:
    """Write rollouts, and plain data about them, to one file, atomically."""
    entries = {} if metadata is None else {"lion": json.dumps(metadata)}
    schema = SCHEMA.with_metadata({**entries, "checksum": _BLANK.decode()})
    table = pa.Table.from_pylist(list(map(_to_row, rollouts)), schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table)
    # The checksum is computed with its own digits blanked. It is an entry of the schema, which an Arrow file holds
    # twice: before and after the rows.
    content = bytearray(sink.getvalue().to_pybytes())
    checksum = _NAME + f"{zlib.crc32(content):08x}".encode()
    for start in {content.find(_BLANK), content.rfind(_BLANK)}:
        content[start : start + len(checksum)] = checksum
    with explain_write_errors(path, "sampled answers", WRITABLE):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)


def read_rollouts(path: Path) -> list[Rollout]:
    """Read the rollouts of a file.

    Raises:
        ValueError: The file is damaged (:class:`DamagedFileError`), of another version, or of another kind.
    """
    return to_rollouts(path, read_table(path)[0])


def to_rollouts(path: Path, table: Any) -> list[Rollout]:
    """The rows of a table as rollouts; a row that is none raises :class:`DamagedFileError`, which names the path."""
    try:
        return [_from_row(row) for row in table.to_pylist()]
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path}: damaged (a row is not a rollout: {error})") from error


def has_rollouts(path: Path) -> bool:
    """True if the file exists and is intact; a damaged file is removed, so that it is made again."""
    try:
        return path.exists() and bool(read_table(path))
    except ValueError as error:
        reason = str(error).partition(": ")[2].partition(";")[0]
        logger.warning("%s: removed, and will be made again (%s)", path, reason)
        path.unlink(missing_ok=True)
        return False


def _to_row(rollout: Rollout) -> dict[str, Any]:
    prompt, answers = rollout.prompt, rollout.answers
    return {
        "where": prompt.where,
        "text": prompt.text,
        "messages": json.dumps(prompt.messages, default=str),
        "row": json.dumps(dict(prompt.row), default=str),
        "original": prompt.original,
        "prompt_ids": prompt.input_ids,
        "group": rollout.group,
        "monitor": rollout.monitor,
        "seed": rollout.seed,
        "answers": [answer.text for answer in answers],
        "finish_reasons": [answer.finish_reason for answer in answers],
        "models": [answer.model for answer in answers],
        "token_ids": [answer.token_ids for answer in answers],
        "num_added": rollout.num_added,
        "scores": rollout.scores,
        "by_judge": json.dumps({name: list(scores) for name, scores in rollout.by_judge.items()}),
        "right": rollout.right,
        "final_answers": rollout.final_answers,
        "usable": rollout.usable,
        "pairs": rollout.pairs,
        "left_out": rollout.left_out,
    }


def _from_row(row: Mapping[str, Any]) -> Rollout:
    columns = zip(row["answers"], row["finish_reasons"], row["token_ids"], row["models"], strict=True)
    number = len(row["answers"])
    for name in ("scores", "right", "final_answers"):
        if len(row[name]) not in (0, number):
            raise ValueError(f"{len(row[name])} {name} of {number} answers")
    if not 0 <= row["num_added"] < max(number, 1):
        raise ValueError(f"{row['num_added']} of {number} answers were added")
    return Rollout(
        prompt=Prompt(
            text=row["text"],
            input_ids=tuple(row["prompt_ids"]),
            messages=tuple(json.loads(row["messages"])),
            row=json.loads(row["row"]),
            original=row["original"],
            where=row["where"],
        ),
        answers=tuple(Answer(text, reason, ids and tuple(ids), model) for text, reason, ids, model in columns),
        group=row["group"],
        monitor=row["monitor"],
        seed=row["seed"],
        num_added=row["num_added"],
        scores=tuple(row["scores"]),
        by_judge={name: tuple(scores) for name, scores in json.loads(row["by_judge"]).items()},
        right=tuple(row["right"]),
        final_answers=tuple(row["final_answers"]),
        usable=tuple(row["usable"]),
        pairs=tuple((chosen, rejected) for chosen, rejected in row["pairs"]),
        left_out=row["left_out"],
    )


def read_table(path: Path) -> tuple[Any, Any]:
    """Read rollouts as a table with the columns of :data:`SCHEMA`, which are views of the memory-mapped file.

    Returns:
        The table, and its metadata or None.

    Raises:
        DamagedFileError: The content is not what was written.
        OtherVersionError: It was written with other columns.
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
    if not checked:
        raise ValueError(f"{path}: not a round of on-policy sampling; name a folder of rounds")
    if not table.schema.equals(SCHEMA):
        columns = ", ".join(sorted({*table.schema.names} ^ {*SCHEMA.names})) or "of other types"
        raise OtherVersionError(
            f"{path}: written by another version of lion_lightning (columns: {columns}); use that version, or move the "
            "folder of rounds away and start the run anew"
        )
    return table, metadata


def _checksum_fits(content: memoryview) -> bool:
    """Compare both copies of the checksum with the content; False if there is none."""
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
