"""The same rows give the same tokens and targets in every kind of file and every spelling."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.encoding.trees import GroupEncoder, LabeledEncoder, PairEncoder
from lion_lightning.data.formats.sft import Example, Text, recognize
from lion_lightning.data.sources.source import Source, open_rows
from lion_lightning.data.store.tokenize import tokenize
from tests.unit.data.letters import byte_tokenizer

Rows = list[dict[str, Any]]


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


DOCUMENTS: Rows = [
    {"messages": [turn("user", "Hi"), turn("assistant", 'Hello\nthere, "you".')], "id": 1},
    {"messages": [turn("system", "s"), turn("user", "[é]"), turn("assistant", "[1, 2] 😀")]},
    {"instruction": "And three?", "output": "six", "history": [["Double one.", "two"], ["Double two.", "four"]]},
    {"instruction": "Add.", "input": "1 + 2", "output": "3", "system": "Be brief."},
    {"prompt": "2+2=", "completion": "4", "label": True},
    {"text": 'Oslo; "wet",\nand cold'},
]
PAIRS: Rows = [
    {"prompt": [turn("user", "Hi")], "chosen": [turn("assistant", "good")], "rejected": [turn("assistant", "bad")]},
    {"chosen": [turn("user", "a"), turn("assistant", "b")], "rejected": [turn("user", "a"), turn("assistant", "c")]},
    {"messages": [turn("user", "q")], "chosen": [turn("assistant", "x")], "rejected": [turn("assistant", "y")]},
]
NAMED = {"instruction": "Name it.", "input": "Norway", "chosen": "Oslo", "rejected": "Bergen"}
TEXT_PAIRS: Rows = [
    {**NAMED, "score_chosen": 2.5, "score_rejected": 1},
    {"question": "2+2?", "answers": ["4", "5", "22"], "scores": [3, 2, 0.5]},
    {"prompt": "2+2=", "chosen": "4", "rejected": "5"},
]


LABELED: Rows = [
    {"prompt": [turn("user", "Hi")], "completion": [turn("assistant", "Hello")], "label": True},
    {"question": "2+2?", "answer": "5", "label": False},
    {"messages": [turn("user", "q"), turn("assistant", "x")], "thumbs_up": 0},
    NAMED,
]
RANKED: Rows = [
    {"question": "2+2?", "answers": ["4", "5", "22"], "scores": [3, 2, 0.5]},
    {
        "instruction": "Add.",
        "completions": [{"response": "a", "overall_score": 1.0}, {"response": "b", "overall_score": 2.5, "model": "m"}],
    },
    {"prompt": "Hi", "completions": [{"response": "a", "rank": 2.0}, {"response": "b", "rank": 1.0}]},
    NAMED,
]


def as_text(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def full(rows: Rows) -> Rows:
    """As a table has them: every row with every column."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(path: Path, rows: Rows, **options: Any) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(full(rows)[0]), **options)
        writer.writeheader()
        writer.writerows({name: as_text(value) for name, value in row.items()} for row in rows)


def parquet(path: Path, rows: Rows) -> None:
    pa.parquet.write_table(pa.Table.from_pylist(full(rows)), path)


def saved(path: Path, rows: Rows) -> None:
    from datasets import Dataset

    Dataset.from_list(full(rows)).save_to_disk(str(path))


def zst(path: Path, rows: Rows) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(lines(rows))


def recoded(path: Path, rows: Rows, write: Callable[[Path, Rows], object]) -> None:
    write(path, rows)
    path.write_bytes(gzip.compress(path.read_text("utf-8").encode("utf-16")))


def shards(path: Path, rows: Rows) -> None:
    (path / "data").mkdir(parents=True)
    (path / "README.md").write_text("# rows")
    (path / "dataset_infos.json").write_text("{}")
    (path / ".cache").mkdir()
    (path / ".cache" / "test.jsonl").write_text("{}")
    for number, row in enumerate(rows):
        name = f"data/train-{number:05}-of-{len(rows):05}.jsonl"
        (path / name).write_bytes(lines([row]))
    (path / "data" / "test-00000-of-00001.jsonl").write_bytes(lines([{"text": "held out"}]))


def bytes_of(make: Callable[[Rows], bytes]) -> Callable[[Path, Rows], object]:
    return lambda path, rows: path.write_bytes(make(rows))


def document(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, indent=indent).encode()


KINDS: dict[str, Callable[[Path, Rows], object]] = {
    "rows.ndjson": bytes_of(lines),
    "rows.JSONL": bytes_of(lambda rows: b"\xef\xbb\xbf" + lines(rows).replace(b"\n", b"\r\n\r\n")),
    "texts.jsonl": bytes_of(lambda rows: lines([{key: as_text(row[key]) for key in row} for row in rows])),
    "nulls.jsonl": bytes_of(lambda rows: lines(full(rows))),
    "utf-16.jsonl": bytes_of(lambda rows: lines(rows).decode().encode("utf-16")),
    "utf-32.json": bytes_of(lambda rows: document(rows, indent=1).decode().encode("utf-32")),
    "utf-16.csv.gz": lambda path, rows: recoded(path, rows, table),
    "array.jsonl": bytes_of(document),
    "indented.jsonl": bytes_of(lambda rows: document(rows, indent=1)),
    "gzip.jsonl": bytes_of(lambda rows: gzip.compress(lines(rows))),
    "zstd.json.gz": zst,
    "plain.jsonl.gz": bytes_of(lines),
    "lines.csv": bytes_of(lines),
    "array.txt": bytes_of(document),
    "lines.parquet": bytes_of(lines),
    "parquet.jsonl": parquet,
    "semicolons.csv": lambda path, rows: table(path, rows, delimiter=";"),
    "tabs.csv": lambda path, rows: table(path, rows, delimiter="\t"),
    "commas.tsv": table,
    "rows.jsonl.gz": bytes_of(lambda rows: gzip.compress(lines(rows[:1])) + gzip.compress(lines(rows[1:]))),
    "rows.jsonl.bz2": bytes_of(lambda rows: bz2.compress(lines(rows))),
    "rows.JSONL.XZ": bytes_of(lambda rows: lzma.compress(lines(rows))),
    "rows.jsonl.zst": zst,
    "lines.json": bytes_of(lines),
    "array.json": bytes_of(document),
    "indented.json": bytes_of(lambda rows: document(rows, indent=1)),
    "array.json.gz": bytes_of(lambda rows: gzip.compress(document(rows))),
    "data.json": bytes_of(lambda rows: document({"data": rows, "version": "1.0"}, indent=1)),
    "one_line.json": bytes_of(lambda rows: document({"data": rows})),
    "splits.json": bytes_of(lambda rows: document({"train": rows, "test": rows[:1]}, indent=1)),
    "rows.parquet": parquet,
    "saved": saved,
    "rows.csv": table,
    "rows.tsv": lambda path, rows: table(path, rows, delimiter="\t"),
    "quoted.CSV": lambda path, rows: table(path, rows, quoting=csv.QUOTE_ALL),
    "hub": shards,
}


def tokens(path: Path, kind: Any, cache: Path) -> list[Any]:
    """Tokens, targets and values of every example."""
    table = tokenize(Source(str(path)), kind(byte_tokenizer()), cache)
    found: list[Any] = []
    for row in range(len(table)):
        sizes = table.segment_lengths[slice(*table.segment_offsets[row : row + 2])]
        stops = np.cumsum(sizes)
        pieces = [table.segment(row, int(stop - size), int(stop)) for stop, size in zip(stops, sizes, strict=True)]
        found.append([(piece.input_ids.tolist(), piece.supervised.tolist()) for piece in pieces])
    return [found, np.nan_to_num(table.values, nan=-1.0).tolist()]


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        (DOCUMENTS, ChatEncoder),
        (PAIRS, PairEncoder),
        (TEXT_PAIRS, PairEncoder),
        (LABELED, LabeledEncoder),
        (RANKED, GroupEncoder),
    ],
)
def test_every_kind_of_file_gives_the_same_tokens_and_targets(tmp_path: Path, rows: Rows, kind: Any) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines(rows))
    expected = tokens(tmp_path / "rows.jsonl", kind, tmp_path / "cache")
    assert len(expected[0]) == len(rows)
    for name, write in KINDS.items():
        write(tmp_path / name, rows)
        assert tokens(tmp_path / name, kind, tmp_path / "cache") == expected, name


def texts(path: Path | str, split: str = "train") -> list[Any]:
    rows = open_rows(str(path), split)
    return [row.values.get("text") for row in rows.take(np.arange(len(rows)))]


def test_a_list_of_lists_of_turns_is_a_list_of_conversations(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    (tmp_path / "bare.json").write_text(json.dumps([talk, talk]))
    (tmp_path / "bare.jsonl").write_bytes(lines([talk, talk]))  # type: ignore[list-item]
    for name in ("bare.json", "bare.jsonl"):
        source = Source(str(tmp_path / name))
        (row, _) = source.open().take(np.arange(2))

        def read(row: Any, columns: Any) -> list[Example]:
            return [recognize(row, columns)]

        assert source.examples(row, read) == [recognize({"conversations": talk})]


def test_a_document_of_one_conversation_is_one_row(tmp_path: Path) -> None:
    talk = [turn("user", "a"), turn("assistant", "b")]
    for name in ("one.json", "one.jsonl"):
        (tmp_path / name).write_text(json.dumps(talk))
        (row,) = open_rows(str(tmp_path / name)).take(np.arange(1))
        assert row.values == {"messages": talk}


def test_an_empty_array_is_empty(tmp_path: Path) -> None:
    for name in ("none.json", "none.csv", "none.txt"):
        (tmp_path / name).write_text("[]")
        with pytest.raises(ValueError, match="it has no rows"):
            texts(tmp_path / name)


def test_a_document_of_one_object_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps({"text": "a"}, indent=1))
    assert texts(tmp_path / "one.json") == ["a"]


def test_a_document_has_the_splits_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"train": [{"text": "a"}], "dev": [{"text": "b"}]}))
    assert texts(tmp_path / "a.json", "dev") == ["b"]
    assert texts(tmp_path / "*.json", "train+dev") == ["a", "b"]


def test_what_stands_beside_the_rows_of_a_document_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"text": "a"}], "system": "Be kind.", "version": 1}))
    with pytest.raises(ValueError, match=r"a\.json: 'system' is next to the rows in `data` and would be lost"):
        texts(tmp_path / "a.json")


def test_cells_are_text_and_empty_ones_null(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbftext,n\r\n"a, ""b""\r\nc",007\r\n\r\n,NaN\r\n')
    rows = list(open_rows(str(path)).take(np.arange(2)))
    assert [(row.where, row.values) for row in rows] == [
        (f"{path}:2", {"text": 'a, "b"\r\nc', "n": "007"}),
        (f"{path}:5", {"text": None, "n": "NaN"}),
    ]


@pytest.mark.parametrize(("name", "cell"), [("a.tsv", "a, b; c"), ("a.csv", "a; b|c")])
def test_a_table_of_one_column_is_not_cut_at_other_marks(tmp_path: Path, name: str, cell: str) -> None:
    (tmp_path / name).write_text(f"text\n{cell}\n")
    assert texts(tmp_path / name) == [cell]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("sep=;\nquestion;answer\na, b;c\n", [("x.csv:3", "a, b", "c")]),
        ('"sep=\t"\r\nquestion\tanswer\r\na\tb\r\n\r\nc\td\r\n', [("x.csv:3", "a", "b"), ("x.csv:5", "c", "d")]),
        ('question, answer\na, "b, c"\n', [("x.csv:2", "a", "b, c")]),
        ('question ,"answer"\n a,b \n', [("x.csv:2", " a", "b ")]),
    ],
)
def test_what_spreadsheets_write_around_names_is_no_part_of_them(
    tmp_path: Path, text: str, rows: list[tuple[str, str, str]]
) -> None:
    (tmp_path / "x.csv").write_text(text, newline="")
    read = Source(str(tmp_path / "x.csv")).open().take(np.arange(len(rows)))
    assert [(Path(row.where).name, row.values["question"], row.values["answer"]) for row in read] == rows


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet", "x.json", "x"])
def test_a_pointer_of_git_lfs_is_not_read_as_data(tmp_path: Path, name: str) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    (tmp_path / name).write_text(pointer)
    with pytest.raises(ValueError, match=rf"{name}: only Git LFS's pointer to the file, .*; run `git lfs pull`"):
        Source(str(tmp_path / name)).open()


@pytest.mark.parametrize("inner", [gzip.compress, bz2.compress, lzma.compress])
def test_a_file_that_is_compressed_twice_is_named_as_such(tmp_path: Path, inner: Callable[[bytes], bytes]) -> None:
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(inner(b'{"text": "a"}\n')))
    with pytest.raises(ValueError, match=r"x\.jsonl\.gz: compressed twice; decompress it once"):
        Source(str(tmp_path / "x.jsonl.gz")).open()


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200_000 + "\n")
    assert texts(tmp_path / "a.csv") == ["x" * 200_000]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,n\na\n", r"a\.csv:2: 1 cells, but 2 columns are named"),
        ("a.csv", b"text\na,b\n", r"a\.csv:2: 2 cells, but 1 columns are named"),
        ("a.csv", b"text,text\na,b\n", r"a\.csv:1: two columns are called 'text'"),
        ("a.csv", b'text\n"a\nb\n', r"a\.csv:2: unexpected end of data"),
        ("a.csv", b"text\n\xff\n", r"a\.csv:2: not UTF-8"),
        ("a.csv", b"text\n", r"a\.csv: it has no rows"),
        ("a.csv", b"", r"a\.csv: it has no rows"),
        ("a.csv", "text\na\n".encode("utf-16") + b"\0", r"a\.csv: not UTF-16 \(truncated data\); save the file as"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16-le"), r"a\.jsonl: not UTF-8 but, by its first bytes, binary or"),
        ("a.jsonl", b"", r"a\.jsonl: it has no rows"),
        ("a.jsonl", b'{"text": "a", "text": "b"}\n', r"a\.jsonl:1: broken JSON \(the key 'text' occurs twice\)"),
        ("a.jsonl", b'{"n": {"a": 1, "a": 1}}\n', r"a\.jsonl:1: broken JSON \(the key 'a' occurs twice\)"),
        ("a.jsonl", b"[" * 100_000 + b"\n", r"a\.jsonl:1: broken JSON \((nested more than 100 levels|Expecting)"),
        ("a.jsonl", b'{"n": ' + b"[" * 200 + b"]" * 200 + b"}\n", r"a\.jsonl:1: nested more than 100 levels deep"),
        ("a.jsonl", b'{"n": ' + b"9" * 5000 + b"}\n", r"a\.jsonl:1: broken JSON \(Exceeds the limit"),
        ("a.jsonl", b"[]\n", r"a\.jsonl:1: a row must be a JSON object with named columns, not list"),
        ("a.json", b"", r"a\.json: it has no rows"),
        ("a.json", b"7", r"a\.json: the file must hold one array of objects, not int"),
        ("a.json", b"[" + b'{"n": ' * 200 + b"1" + b"}" * 200 + b"]", r"a\.json\[0\]: nested more than 100 levels"),
        ("a.json", b'{\n"text": "a"\n}\n{\n"text": "b"\n}\n', r"a\.json:4: broken JSON \(Extra data\)"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz: not a complete \.gz file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], r"a\.jsonl\.gz: not a complete \.gz file"),
        ("a.jsonl.xz", b"no xz", r"a\.jsonl\.xz: not a complete \.xz file"),
        ("a.jsonl.bz2", b"no bz2", r"a\.jsonl\.bz2: not a complete \.bz2 file"),
        ("a.jsonl.zst", b"no zstd at all", r"a\.jsonl\.zst: not a complete \.zst file"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        texts(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_a_column_that_is_there_twice_in_parquet_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: two columns are called 'text'"):
        texts(tmp_path / "a.parquet")


# --- folders


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lines([{"text": text}]))
    return folder


@pytest.mark.parametrize(
    "names",
    [
        {"train_jsonl": "a", "test_jsonl": "b"},
        {"data__train-00000-of-00001_jsonl": "a", "data__test-00000-of-00001_jsonl": "b"},
        {"train__x_jsonl": "a", "test__x_jsonl": "b"},
        {"my-train_jsonl": "a", "my-eval_jsonl": "b"},
    ],
)
def test_names_of_files_and_folders_say_their_split(tmp_path: Path, names: dict[str, str]) -> None:
    folder = write(tmp_path / "hub", **names)
    assert texts(folder) == ["a"]
    assert texts(folder, "test") == texts(folder, "eval") == ["b"]


def test_splits_of_the_hub_keep_their_names(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "hub",
        **{"data__train_sft-00000-of-00002_jsonl": "a", "data__train_sft-00001-of-00002_jsonl": "b"},
        **{"data__test_sft-00000-of-00001_jsonl": "c"},
    )
    assert texts(folder, "train_sft") == ["a", "b"]
    with pytest.raises(ValueError, match=r"no split 'train' .*the splits here are: test_sft, train_sft"):
        texts(folder)


def test_files_that_name_no_split_are_all_of_it(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "hub", a_jsonl="a", b_jsonl="b")) == ["a", "b"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"train_jsonl": "a", "more_jsonl": "b"}, r"the name of more\.jsonl does not say its split"),
        ({"en__train_jsonl": "a", "de__train_jsonl": "b"}, r"files in several folders \(de, en\); name one"),
        ({"train_jsonl": "a", "train_json": "b"}, r"files of several kinds \(\.json, \.jsonl\)"),
    ],
)
def test_a_folder_that_could_mean_several_things_is_refused(
    tmp_path: Path, names: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        texts(write(tmp_path / "hub", **names))


def test_a_saved_set_is_read_as_plain_values_whatever_format_it_has(tmp_path: Path) -> None:
    from datasets import Dataset

    dataset = Dataset.from_dict({"text": ["a"], "n": [1]})
    dataset.set_format("numpy", columns=["n"])
    dataset.save_to_disk(str(tmp_path / "saved"))
    assert texts(tmp_path / "saved") == ["a"]


def test_labels_leave_out_what_says_how_a_file_is_read() -> None:
    for path in ("sums/train.csv", "sums/train.jsonl.gz", "sums/train.JSON"):
        assert Source(path).label == "sums/train"


def test_a_path_object_and_a_transform_by_name_are_taken() -> None:
    source = Source(Path("a.jsonl"), transform="copy.copy")  # type: ignore[arg-type]
    assert source.path == "a.jsonl"
    assert source.description()["transform"] == "copy.copy"
    rows = Source("rows", streaming=True, iterable="builtins.dict")  # type: ignore[arg-type]
    assert rows.description()["iterable"] == "builtins.dict"  # no address, which differs between processes
    assert source == Source("a.jsonl", transform=__import__("copy").copy)
    with pytest.raises(ValueError, match=r"transform 'copy\.kopy' cannot be imported"):
        Source("a.jsonl", transform="copy.kopy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="transform 'copy' cannot be imported"):
        Source("a.jsonl", transform="copy")  # type: ignore[arg-type]


class Shout:
    """A transform that is an object."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"text": row["text"].upper()}


def test_a_transform_may_be_an_object_or_a_partial(tmp_path: Path) -> None:
    from functools import partial

    (tmp_path / "a.jsonl").write_bytes(lines([{"text": "a"}]))
    for transform in (Shout(), partial(Shout.__call__, Shout())):
        source = Source(str(tmp_path / "a.jsonl"), transform=transform)
        assert "Shout" in source.description()["transform"]
        (row,) = source.open().take(np.arange(1))
        assert source.examples(row, lambda row, columns: [Text(row["text"])]) == [Text("A")]
