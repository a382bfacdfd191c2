"""Every kind of source is read from any block on, without reading what stands before it twice or losing a row."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lion_lightning.data.sources.readers import Row
from lion_lightning.data.sources.source import Source
from lion_lightning.data.streaming.reading import BLOCK_ROWS, Line, Place, RawBlock, SourceReader

COUNT = 2 * BLOCK_ROWS + 10
ROWS = [{"text": f"row {number} é"} for number in range(COUNT)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" + "\n" * (n % 3 == 0) for n, row in enumerate(ROWS))


def parquet(path: Path, rows: list[dict[str, str]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=50)


def write(folder: Path, kind: str) -> str:
    """The rows in a file of a kind, or in several."""
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text(LINES, encoding="utf-8-sig")
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(LINES.encode()))
    elif kind == "jsonl.bz2":
        path.write_bytes(bz2.compress(LINES.encode()))
    elif kind == "utf16.jsonl":
        path.write_text(LINES, encoding="utf-16")
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "csv":
        path.write_text("text\n" + "".join(f"{row['text']}\n" for row in ROWS), encoding="utf-8")
    elif kind == "parquet":
        parquet(path, ROWS)
    elif kind == "saved":
        import datasets

        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    elif kind == "files":
        path.mkdir()
        for number in range(5):
            parquet(path / f"{number}.parquet", ROWS[number * COUNT // 5 : (number + 1) * COUNT // 5])
    return str(path)


def texts(blocks: list[RawBlock]) -> list[Any]:
    rows = [row.parse() if isinstance(row, Line) else row for block in blocks for row in block.rows]
    assert len({row.where for row in rows}) == len(rows)
    return [row.values["text"] for row in rows]


KINDS = ["jsonl", "jsonl.gz", "jsonl.bz2", "utf16.jsonl", "json", "csv", "parquet", "saved", "files"]


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_read_from_any_block_on(tmp_path: Path, kind: str) -> None:
    reader = SourceReader.of(Source(write(tmp_path, kind), streaming=True))
    blocks = list(reader.blocks(Place()))
    assert texts(blocks) == [row["text"] for row in ROWS]
    assert max(len(block.rows) for block in blocks) <= BLOCK_ROWS
    for number, block in enumerate(blocks):
        assert texts(list(reader.blocks(block.after))) == texts(blocks[number + 1 :])


def test_files_are_read_in_an_order_of_the_seed(tmp_path: Path) -> None:
    reader = SourceReader.of(Source(write(tmp_path, "files"), streaming=True))
    orders = {tuple(texts(list(reader.shuffled([seed]).blocks(Place())))) for seed in range(5)}
    assert len(orders) > 1
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(row["text"] for row in ROWS))}
    (tmp_path / "rows.files" / "5.parquet").write_bytes((tmp_path / "rows.files" / "0.parquet").read_bytes())
    assert SourceReader.of(Source(str(tmp_path / "rows.files"))).fingerprint() != reader.fingerprint()


def skipped_rows() -> Iterator[dict[str, str]]:
    yield from ROWS


class Stateful:
    """Rows with a state of their own, which counts how many it has read itself."""

    read = 0

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[dict[str, str]]:
        while self.position < COUNT:
            Stateful.read += 1
            self.position += 1
            yield ROWS[self.position - 1]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


@pytest.mark.parametrize("iterable", [skipped_rows, Stateful])
def test_an_iterable_is_read_from_any_block_on(iterable: Any) -> None:
    reader = SourceReader.of(Source("mine", streaming=True, iterable=iterable))
    blocks = list(reader.blocks(Place()))
    assert texts(blocks) == [row["text"] for row in ROWS]
    for number, block in enumerate(blocks):
        Stateful.read = 0
        assert texts(list(reader.blocks(block.after))) == texts(blocks[number + 1 :])
        assert Stateful.read == (COUNT - block.after.row if iterable is Stateful else 0)


def test_a_stream_of_datasets_is_resumed_by_its_state(tmp_path: Path) -> None:
    """What a hub id gives, here of local files."""
    import datasets

    folder = write(tmp_path, "files")

    def rows() -> Any:
        return datasets.load_dataset("parquet", data_files=f"{folder}/*.parquet", split="train", streaming=True)

    reader = SourceReader.of(Source("hub", streaming=True, iterable=rows))
    blocks = list(reader.blocks(Place()))
    assert texts(blocks) == [row["text"] for row in ROWS]
    for number, block in enumerate(blocks):
        assert json.loads(json.dumps(block.after.state)) == block.after.state
        assert texts(list(reader.blocks(block.after))) == texts(blocks[number + 1 :])


def failing() -> Iterator[Any]:
    yield ROWS[0]
    raise OSError("the line is down")


def not_rows() -> Iterator[Any]:
    yield "a text"


@pytest.mark.parametrize(
    ("iterable", "message"),
    [
        (failing, r"mine\[1\]: OSError: the line is down; fix the iterable"),
        (not_rows, r"mine\[0\]: a row must be a dict with named columns, not str"),
        (lambda: 1 / 0, "mine: ZeroDivisionError: division by zero; fix the iterable"),
    ],
)
def test_an_iterable_that_fails_is_named(iterable: Any, message: str) -> None:
    reader = SourceReader.of(Source("mine", streaming=True, iterable=iterable))
    with pytest.raises(ValueError, match=message):
        list(reader.blocks(Place()))


def test_an_iterable_is_imported_by_its_path() -> None:
    source = Source("mine", streaming=True, iterable=f"{__name__}.skipped_rows")  # type: ignore[arg-type]
    assert [type(row) for block in SourceReader.of(source).blocks(Place()) for row in block.rows] == [Row] * COUNT
    with pytest.raises(ValueError, match=r"iterable 'nothing\.here' cannot be imported"):
        Source("mine", streaming=True, iterable="nothing.here")  # type: ignore[arg-type]


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no split 'test'; the splits here are: train"):
        SourceReader.of(Source(write(tmp_path, "jsonl"), split="test", streaming=True))
