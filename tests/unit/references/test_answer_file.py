"""Files of scored answers: grown by blocks, mapped, and damage found before a number is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lion_lightning.references.answer_file import ANSWER_BYTES, SCHEMA, TARGET_BYTES, AnswerFile, to_block

KEYS = np.arange(6, dtype=np.uint64).reshape(3, 2)
COUNTS = np.array([2, 0, 3])
VALUES = np.array([-0.5, -1.5, -2.5, -3.5, -4.5], np.float32)

FIRST = bytes(to_block(KEYS, COUNTS, VALUES))
SECOND = bytes(to_block(KEYS[:1] + 10, COUNTS[2:], VALUES[:3] - 10))


def held(file: AnswerFile) -> list[tuple[list[int], list[float]]]:
    """Key and log-probs of each answer."""
    answers = []
    for block in file.blocks:
        for key, start, count in zip(block.keys, block.starts, block.counts, strict=True):
            answers.append((key.tolist(), file.words[start : start + count].tolist()))
    return answers


OF_FIRST = [([0, 1], [-0.5, -1.5]), ([2, 3], []), ([4, 5], [-2.5, -3.5, -4.5])]
OF_SECOND = [([10, 11], [-10.5, -11.5, -12.5])]


def test_a_file_that_grows_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(FIRST)
    file = AnswerFile(path)
    assert file.read_on()
    assert held(file) == OF_FIRST
    assert not file.read_on()
    path.write_bytes(FIRST + SECOND)
    assert file.read_on()
    assert held(file) == OF_FIRST + OF_SECOND


def test_a_block_of_answers_without_targets_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(to_block(KEYS, COUNTS * 0, VALUES[:0]))
    file = AnswerFile(tmp_path / "a.arrow")
    file.read_on()
    assert [values for _, values in held(file)] == [[], [], []]


def test_an_unfinished_block_is_not_there_until_it_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    for stop in range(0, len(SECOND), 23):
        path.write_bytes(FIRST + SECOND[:stop])
        file = AnswerFile(path)
        file.read_on()
        assert held(file) == OF_FIRST, stop
        path.write_bytes(FIRST + SECOND)
        file.read_on()
        assert held(file) == OF_FIRST + OF_SECOND, stop


def test_a_changed_byte_anywhere_never_changes_what_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    refused = 0
    for place in range(0, len(FIRST + SECOND), 4):
        content = bytearray(FIRST + SECOND)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        file = AnswerFile(path)
        try:
            file.read_on()
        except ValueError:
            refused += 1
        else:
            assert held(file) in (OF_FIRST, OF_FIRST + OF_SECOND), place
    assert refused > 20  # a value, a key, an offset or the checksum


def stream(columns: dict[str, Any], batches: int = 1, compression: str | None = None, checksum: str = "0") -> bytes:
    batch = pa.RecordBatch.from_pydict(columns)
    schema = batch.schema.with_metadata({"crc32": checksum})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        for _ in range(batches):
            writer.write_batch(batch.replace_schema_metadata({"crc32": checksum}))
    return bytes(sink.getvalue())


def column(values: Any, name: str) -> Any:
    return pa.array(values, SCHEMA.field(name).type)


GOOD = {"key": column([b"x" * 16], "key"), "logps": column([[-1.0] * 64], "logps")}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        FIRST[:-1],
        stream(GOOD),
        stream(GOOD, batches=2),
        stream(GOOD, compression="zstd"),
        stream({"key": GOOD["key"]}),
        stream({"key": column([None], "key"), "logps": GOOD["logps"]}),
        stream({"key": GOOD["key"], "logps": pa.array([["text"]])}),
    ],
    ids=["empty", "json", "cut", "checksum", "two batches", "compressed", "no values", "no key", "other values"],
)
def test_other_content_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(content)
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        AnswerFile(tmp_path / "a.arrow").read_on()


def test_offsets_that_point_elsewhere_are_refused(tmp_path: Path) -> None:
    for offset in (-1, 6, 2**31 - 1):
        offsets = np.array([0, 2, 2, 5], np.int32).tobytes()
        place = FIRST.index(offsets)
        lying = np.array([0, 2, 2, offset], np.int32).tobytes()
        (tmp_path / "a.arrow").write_bytes(FIRST[:place] + lying + FIRST[place + len(lying) :])
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            AnswerFile(tmp_path / "a.arrow").read_on()


def test_the_size_of_a_block_is_that_of_its_answers_and_targets() -> None:
    answers, targets = 8000, 120_000
    keys = np.arange(2 * answers, dtype=np.uint64).reshape(-1, 2)
    block = to_block(keys, np.full(answers, targets // answers), np.zeros(targets, np.float32))
    assert block.size == pytest.approx(ANSWER_BYTES * answers + TARGET_BYTES * targets, abs=1000)
