"""Reading: every kind of place, and one clear line for everything that is wrong with one."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lion_lightning.data.formats.sft import Completion, Conversation, Example, Text, recognize
from lion_lightning.data.formats.turns import Message
from lion_lightning.data.sources.readers import Row
from lion_lightning.data.sources.source import Source, open_rows
from tests.unit.data.pairs import pair_of


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def texts(source: Source) -> list[str]:
    rows = source.open()
    return [row.values["text"] for row in rows.take(source.choose(len(rows)))]


@pytest.fixture
def numbered(tmp_path: Path) -> str:
    return lines(tmp_path / "numbered.jsonl", *({"text": str(number)} for number in range(100)))


def test_json_lines_skip_blank_lines_and_keep_the_true_line_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n  \n{"text": "two"}')
    rows = open_rows(str(path))
    assert [(row.where, row.values) for row in rows.take(np.arange(2))] == [
        (f"{path}:1", {"text": "one"}),
        (f"{path}:4", {"text": "two"}),
    ]


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one\u2028still one"}\n', "utf-8")
    assert texts(Source(str(tmp_path / "a.jsonl"))) == ["one\u2028still one"]


def test_a_json_file_may_be_an_array_or_lines(tmp_path: Path) -> None:
    (tmp_path / "array.json").write_text(json.dumps([{"text": "one"}, {"text": "two"}], indent=2))
    lines(tmp_path / "lines.json", {"text": "three"})
    rows = open_rows(str(tmp_path / "array.json"))
    assert [row.where for row in rows.take(np.array([1]))] == [f"{tmp_path}/array.json[1]"]
    assert texts(Source(str(tmp_path / "*.json"))) == ["one", "two", "three"]


def test_parquet_reads_across_batches(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [str(n) for n in range(2500)]}), tmp_path / "a.parquet")
    rows = open_rows(str(tmp_path / "a.parquet"))
    taken = list(rows.take(np.array([0, 999, 1000, 2499])))
    assert [row.values["text"] for row in taken] == ["0", "999", "1000", "2499"]
    assert taken[2].where == f"{tmp_path}/a.parquet[1000]"


def test_of_parquet_only_row_groups_with_rows_that_are_asked_for_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [str(n) for n in range(2500)]}), path, row_group_size=1000, compression="none")
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    first = chunk.dictionary_page_offset
    content[first : first + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    rows = open_rows(str(path))
    taken = list(rows.take(np.array([7, 999, 2000, 2499])))
    assert [row.values["text"] for row in taken] == ["7", "999", "2000", "2499"]
    assert taken[2].where == f"{path}[2000]"
    with pytest.raises(ValueError, match=r"a\.parquet: not a complete parquet file \(.*\); write it again"):
        list(rows.take(np.array([1000])))


def test_a_glob_of_several_kinds_reads_in_the_order_of_names(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines(tmp_path / "2.jsonl", {"text": "two"})
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "1.parquet")
    lines(tmp_path / "3.jsonl", {"text": "three"})
    assert texts(Source(f"{tmp_path}/[0-9].*")) == ["one", "two", "three"]


def test_saved_data_sets_have_their_splits(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    both = DatasetDict({name: Dataset.from_dict({"text": [name]}) for name in ("train", "test")})
    both.save_to_disk(str(tmp_path / "both"))
    Dataset.from_dict({"text": ["a", "b", "c"]}).save_to_disk(str(tmp_path / "single"))
    assert texts(Source(str(tmp_path / "both"), split="test")) == ["test"]
    assert texts(Source(str(tmp_path / "both"), split="train+test")) == ["train", "test"]
    assert texts(Source(str(tmp_path / "single"), split="train[1:]")) == ["b", "c"]
    with pytest.raises(ValueError, match=r"no split 'dev'.*the splits here are: test, train"):
        Source(str(tmp_path / "both"), split="dev").open()


def test_a_hub_id_is_loaded_with_its_split_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: dict[str, Any] = {}

    def load(path: str, subset: str | None, **options: Any) -> Any:
        asked.update(options, path=path, subset=subset)
        return datasets.Dataset.from_dict({"text": ["x"]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert texts(Source("owner/set", split="dev", subset="en", revision="v1")) == ["x"]
    assert asked == {"path": "owner/set", "subset": "en", "split": "dev", "revision": "v1"}


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ValueError, match=r"^owner/set: nothing on disk has this name.*\(no route\).*network$"):
        Source("owner/set").open()


def test_part_of_a_file_is_a_split(numbered: str) -> None:
    assert texts(Source(numbered, split="train[:2]")) == ["0", "1"]
    assert texts(Source(numbered, split="train[98%:]")) == ["98", "99"]
    train, held = (set(texts(Source(numbered, split=split))) for split in ("train[:90%]", "train[90%:]"))
    assert len(train) == 90
    assert train | held == {str(number) for number in range(100)}


def test_a_fraction_below_one_is_reproducible_and_follows_its_seed(numbered: str) -> None:
    some = texts(Source(numbered, fraction=0.25))
    assert len(some) == len(set(some)) == 25
    assert some == texts(Source(numbered, fraction=0.25))
    assert some != texts(Source(numbered, fraction=0.25, seed=1))
    assert set(some) < set(texts(Source(numbered, fraction=0.5)))  # one permutation: a larger share holds the smaller


def test_lines_that_the_fraction_leaves_out_are_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "0"}\nbroken\n')
    kept = [seed for seed in range(20) if Source(str(path), fraction=0.5, seed=seed).choose(2)[0] == 0]
    assert texts(Source(str(path), fraction=0.5, seed=kept[0])) == ["0"]


@pytest.mark.parametrize("fraction", [0.0, -1.0, float("nan"), float("inf")])
def test_fractions_that_make_no_sense(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"^a\.jsonl: fraction is"):
        Source("a.jsonl", fraction=fraction)


def test_a_fraction_that_leaves_no_row(numbered: str) -> None:
    with pytest.raises(ValueError, match=r"fraction 0\.001 of 100 rows leaves none"):
        texts(Source(numbered, fraction=0.001))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n\n{"text": \n', r"a\.jsonl:3: broken JSON \(Expecting value\)"),
        (b'{"text": "a"}\n[1]\n', r"a\.jsonl:2: a row must be a JSON object with named columns, not list"),
        (b'{"text": "a"}\n"b"\n', r"a\.jsonl:2: .* not str"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"a\.jsonl:2: not UTF-8 .*save the file as UTF-8"),
        (b"\n \n", r"a\.jsonl: it has no rows"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        texts(Source(str(path)))


def test_a_broken_array_names_the_line_inside_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[\n{"text": "a"},\n{"text" "b"}\n]')
    with pytest.raises(ValueError, match=r"a\.json:3: broken JSON .*one array of objects"):
        Source(f"{tmp_path}/a.json").open()


def test_a_cut_off_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"a\.parquet: not a complete parquet file"):
        Source(f"{tmp_path}/a.parquet").open()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing.jsonl", "no such file; check the path"),
        ("missing/*.jsonl", "no file matches"),
        (
            "a.txt",
            r"cannot read \.txt files; known are \.jsonl, \.ndjson, \.json, \.parquet, \.csv, .*compressed \(\.gz",
        ),
        ("a.parquet.gz", r"cannot read \.parquet\.gz files"),
        ("folder", r"not a data set saved with save_to_disk, and no file in it can be read; .*folder/\*\.jsonl"),
    ],
)
def test_paths_that_cannot_be_read(tmp_path: Path, path: str, message: str) -> None:
    for name in ("a.txt", "a.parquet.gz"):
        (tmp_path / name).write_text("text\na\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=message):
        Source(str(tmp_path / path)).open()


def test_a_file_has_one_split_and_no_revision(numbered: str) -> None:
    with pytest.raises(ValueError, match=r"no split 'test'.*the splits here are: train"):
        Source(numbered, split="test").open()
    with pytest.raises(ValueError, match="are for data sets on the hub"):
        Source(numbered, revision="main").open()


def read(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Example]:
    return [recognize(row, columns)]


def one(source: Source, row: dict[str, Any]) -> Any:
    (example,) = source.examples(Row("a:1", row), read)
    return example


def test_a_system_message_is_put_before_those_without_and_the_prompt_grows_by_it() -> None:
    source = Source("a", system="Be brief.")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert one(source, {"messages": turns}).messages[0] == Message("system", "Be brief.")
    own = one(source, {"messages": [{"role": "system", "content": "Own."}, *turns]})
    assert [message.content for message in own.messages] == ["Own.", "Hi", "Hello"]
    assert one(source, {"prompt": turns[:1], "completion": turns[1:]}).prompt_turns == 2
    with pytest.raises(ValueError, match=r"^a:1: `system` is set, but this row is plain text"):
        one(source, {"text": "raw"})


def test_a_system_message_is_put_before_both_sides_of_a_pair() -> None:
    def side(answer: str) -> Conversation:
        return Conversation((Message("user", "Hi"), Message("assistant", answer)), prompt_turns=1)

    source, row = Source("a", system="Be brief."), Row("a:1", {})
    (pair,) = source.examples(row, lambda row, columns: [pair_of(side("Hello"), side("What?"), 0.5, 0.0)])
    system = Message("system", "Be brief.")
    assert pair == pair_of(
        Conversation((system, *side("Hello").messages), prompt_turns=2),
        Conversation((system, *side("What?").messages), prompt_turns=2),
        0.5,
        0.0,
    )
    plain = pair_of(Completion("Hi", "Hello"), Completion("Hi", "What?"))
    with pytest.raises(ValueError, match=r"^a:1: `system` is set, but this row is plain text"):
        source.examples(row, lambda row, columns: [plain])


def test_every_example_that_is_read_in_a_row_counts() -> None:
    source = Source("a", transform=expand)
    texts = source.examples(Row("a:1", {"texts": ["xy", "z"]}), lambda row, columns: list(map(Text, row["text"])))
    assert texts == [Text("x"), Text("y"), Text("z")]


def test_columns_are_renamed_and_a_wrong_name_is_told_with_the_row() -> None:
    source = Source("a", columns={"question": "q", "answer": "a"})
    assert isinstance(one(source, {"q": "1+1?", "a": "2"}), Conversation)
    with pytest.raises(ValueError, match=r"^a:1: columns maps question to 'q'"):
        one(source, {"question": "1+1?", "a": "2"})


def expand(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"text": text} for text in row["texts"]]


def test_a_transform_makes_one_row_or_many_or_none() -> None:
    many = Source("a", transform=expand)
    assert many.examples(Row("a:1", {"texts": ["x", "y"]}), read) == [Text("x"), Text("y")]
    assert many.examples(Row("a:1", {"texts": []}), read) == []
    assert one(Source("a", transform=lambda row: {"text": row["t"]}), {"t": "x"}) == Text("x")
    assert one(Source("a", transform=lambda row: iter([row])), {"text": "x"}) == Text("x")


def test_a_transform_that_fails_names_the_row_and_keeps_the_cause() -> None:
    with pytest.raises(ValueError, match=r"^a:1: transform expand failed \(KeyError: 'texts'\)") as raised:
        one(Source("a", transform=expand), {"text": "x"})
    assert isinstance(raised.value.__cause__, KeyError)


@pytest.mark.parametrize("made", [None, 3, "text", [["text"]]])
def test_a_transform_that_returns_no_rows_is_refused(made: Any) -> None:
    with pytest.raises(ValueError, match=r"^a:1: transform .* return"):
        one(Source("a", transform=lambda row: made), {"text": "x"})


def test_labels_are_short_and_tell_splits_apart() -> None:
    assert Source("data/gsm8k/train.jsonl").label == "gsm8k/train"
    assert Source("owner/set-v1.5").label == "owner/set-v1.5"
    assert Source("owner/set", split="dev").label == "owner/set:dev"
    assert Source("owner/set", name="mine").label == "mine"


def test_yaml_gives_sources_with_a_transform_by_import_path() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--sources", type=list[Source])
    config = parser.parse_string(
        "sources: [{path: a.jsonl, fraction: 2.5, transform: copy.copy, columns: {prompt: question}}]"
    )
    (source,) = parser.instantiate(config).sources
    assert source == Source("a.jsonl", fraction=2.5, transform=copy.copy, columns={"prompt": "question"})
