"""Decontamination of sources: rows left out by cause, counts by benchmark, what is flagged, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lion_lightning.data.decontamination import Decontamination
from lion_lightning.data.decontamination.overlap import split_words
from lion_lightning.data.on_policy import OnPolicyDataModule
from lion_lightning.data.preference import PreferenceDataModule
from lion_lightning.data.sft import SFTDataModule
from lion_lightning.data.sources.source import Source
from tests.unit.data.letters import byte_tokenizer

Write = Callable[..., Source]
WORDS = [f"w{number}" for number in range(1, 30)]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, *rows: dict[str, Any] | str, **options: Any) -> Source:
        path = tmp_path / f"{name}.jsonl"
        rows = tuple({"question": row, "answer": "yes"} if isinstance(row, str) else row for row in rows)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Source(str(path), name=name, **options)

    return write


def ready(sources: list[Source], rule: Decontamination, folder: Path, kind: Any = SFTDataModule, **more: Any) -> Any:
    data = kind(sources, byte_tokenizer(), cache_dir=folder / "cache", document_filters=[rule], **more)
    data.prepare_data()
    data.setup()
    return data


def rows_left(data: Any) -> list[int]:
    documents = data.train_mixture.documents
    return [int(documents.where(number).rpartition(":")[2]) for number in range(len(documents))]


def left_out(report: Any) -> dict[str, int]:
    return {cause: counts.documents for cause, counts in report.left_out.items()}


def text(first: int, last: int, around: str = "x") -> str:
    return f"{around}, {'; '.join(WORDS[first - 1 : last])} {around}?"


def test_a_missing_benchmark_is_found_before_anything_is_tokenized(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: no such file"):
        ready([write("a", "x")], Decontamination([Source("nowhere.jsonl")]), tmp_path)
    assert not (tmp_path / "cache").exists()


def test_rows_that_share_most_of_an_item_s_words_are_left_out_and_counted(write: Write, tmp_path: Path) -> None:
    benchmark = write("b", " ".join(WORDS[:12]).upper(), "one two three", {"question": " ".join(WORDS[12:28])})
    rows = [text(1, 8), text(5, 12), text(1, 7), "Only ONE, two; three (four).", "one two", text(13, 20), text(13, 21)]
    data = ready([write("a", *rows)], Decontamination([benchmark]), tmp_path)
    assert rows_left(data) == [3, 5, 6]
    assert left_out(data.reports[0]) == {"overlaps with b": 3, "contains a short item of b": 1}
    (described,) = json.loads(json.dumps(data.description()))["document_filters"]
    assert described["benchmarks"][0]["digest"]
    assert described["found"] == [
        {
            "source": "a",
            "benchmarks": [
                {
                    "benchmark": "b",
                    "items": 3,
                    "items_found": 3,
                    "share": 1.0,
                    "flagged": True,
                    "short_items": 1,
                    "short_items_found": 1,
                    "rows": 4,
                }
            ],
        }
    ]
    assert str(tmp_path) not in json.dumps(described["found"])  # a model card shows counts alone
    lines = data.document_filters.lines()
    assert lines[0] == (
        "a: benchmark b: 3 of 3 items (100.0%) found; rows left out: 4; of 1 items of fewer than 8 words 1 found"
    )
    folder = tmp_path
    assert lines[1] == f"a: {folder}/a.jsonl:4 has 100% of the words of {folder}/b.jsonl:2 (one two three ...)"
    decision = Path(lines[-1].partition("each row and why it is left out: ")[2])
    assert json.loads(decision.read_text())["details"] == [
        {"row": f"{folder}/a.jsonl:1", "item": f"{folder}/b.jsonl:1", "overlap": 0.6667},
        {"row": f"{folder}/a.jsonl:2", "item": f"{folder}/b.jsonl:1", "overlap": 0.6667},
        {"row": f"{folder}/a.jsonl:4", "item": f"{folder}/b.jsonl:2", "overlap": 1.0},
        {"row": f"{folder}/a.jsonl:7", "item": f"{folder}/b.jsonl:3", "overlap": 0.5625},
    ]


@pytest.mark.parametrize(("hit", "flagged"), [(2, False), (3, True)])
def test_a_benchmark_is_flagged_above_two_percent(
    hit: int, flagged: bool, write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = [" ".join(f"{number}-{word}" for word in WORDS[:10]) for number in range(100)]
    rule = Decontamination([write("b", *items)])
    data = ready([write("a", *items[:hit], "what else")], rule, tmp_path)
    (count,) = data.description()["document_filters"][0]["found"][0]["benchmarks"]
    assert (count["items_found"], count["share"], count["flagged"]) == (hit, hit / 100, flagged)
    assert rows_left(data) == [hit + 1]  # the rows go in any case
    warning = "source a: 3.0% of the items of benchmark b are in it, more than 2.0%"
    assert (warning in caplog.text) is flagged


def test_each_user_turn_is_a_text_of_its_own(write: Write, tmp_path: Path) -> None:
    def chat(*turns: str) -> dict[str, Any]:
        roles = ["user", "assistant"] * len(turns)
        return {"messages": [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]}

    item = chat(text(1, 12, "").strip(" ,?"), "an answer", "why is that so", "because")
    rows = [
        chat("hi", "ho", text(1, 8), "ho"),  # any turn
        chat(text(1, 7), "ho", text(8, 12), "ho"),  # not over turns
        chat("why is that so", "ho"),  # a short turn of an item that has a long one
        chat("hi", text(1, 12)),  # answers are not compared
        chat("hi", "ho", text(13, 28), "ho"),
    ]
    data = ready([write("a", *rows)], Decontamination([write("b", item)]), tmp_path)
    assert rows_left(data) == [2, 3, 4, 5]


def test_texts_pairs_and_prompts_of_rounds_are_compared_too(write: Write, tmp_path: Path) -> None:
    rule = Decontamination([write("b", " ".join(WORDS[:12]))])
    texts = write("a", *({"text": f"{'y ' * 30}{line} {'z ' * 30}"} for line in (text(1, 9), "else")))
    assert rows_left(ready([texts], rule, tmp_path)) == [2]
    pairs = write("c", *({"prompt": line, "chosen": "a", "rejected": "b"} for line in (text(1, 9), "else")))
    assert rows_left(ready([pairs], rule, tmp_path, PreferenceDataModule)) == [2]
    prompts = write("d", *({"question": line} for line in ("else", text(1, 9))))
    online = OnPolicyDataModule([prompts], byte_tokenizer(), cache_dir=tmp_path / "cache", document_filters=[rule])
    online.setup()
    assert online.pool.left_out == {"overlaps with b": 1}
    assert [prompt.row["question"] for prompt, _ in online.pool.take([0])] == ["else"]
    (line, shown, _) = online.pool.document_filters.lines()
    assert line == "d: benchmark b: 1 of 1 items (100.0%) found; rows left out: 1"
    assert shown.startswith(f"d: {tmp_path}/d.jsonl:2 has 75% of the words of {tmp_path}/b.jsonl:1 (w1 w2")
    assert "100.0% of the items of benchmark b are in it" in online.pool.warnings()[0]


def test_a_stream_is_compared_and_counted_by_cause(write: Write, tmp_path: Path) -> None:
    rule = Decontamination([write("b", " ".join(WORDS[:12]))])
    rows = [text(1, 9) if number % 10 == 0 else f"row {number}" for number in range(200)]
    source = write("a", *({"question": f"{row} {n}", "answer": "yes"} for n, row in enumerate(rows)), streaming=True)
    data = ready([source], rule, tmp_path, num_workers=1)
    assert sum(len(batch.sample_indices) for batch in data.train_dataloader()) == 180
    assert left_out(data.reports[0]) == {"overlaps with b": 20}


def test_a_row_in_two_benchmarks_counts_once_as_left_out_and_in_both_reports(write: Write, tmp_path: Path) -> None:
    benchmarks = [write("b", " ".join(WORDS[:12])), write("c", " ".join(WORDS[2:12]))]
    data = ready([write("a", text(1, 12), "else")], Decontamination(benchmarks), tmp_path)
    assert left_out(data.reports[0]) == {"overlaps with b": 1}
    counts = data.description()["document_filters"][0]["found"][0]["benchmarks"]
    assert [count["rows"] for count in counts] == [1, 1]


def test_other_benchmarks_and_settings_decide_anew(write: Write, tmp_path: Path) -> None:
    source = write("a", text(1, 8), text(1, 9), "else")
    kept = []
    for options in ({}, {"overlap": 0.7}, {"ngram": 9}, {}):
        rule = Decontamination([write("b", " ".join(WORDS[:12]))], **options)
        kept.append(rows_left(ready([source], rule, tmp_path)))
    assert kept == [[3], [1, 3], [1, 3], [3]]
    assert len([*(tmp_path / "cache" / "document_filters").iterdir()]) == 3
    other = Decontamination([write("b", "another item of which no row has anything")])
    assert rows_left(ready([source], other, tmp_path)) == [1, 2, 3]


def test_columns_of_a_benchmark_are_mapped_as_those_of_any_source(write: Write, tmp_path: Path) -> None:
    benchmark = write("b", {"ask": " ".join(WORDS[:12]), "choices": ["a", "b"]}, columns={"question": "ask"})
    assert rows_left(ready([write("a", text(1, 8), "else")], Decontamination([benchmark]), tmp_path)) == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"benchmarks": []}, "benchmarks is empty"),
        ({"ngram": 1}, "ngram is 1"),
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"overlap": -0.1}, "overlap is -0.1"),
        ({"overlap": float("nan")}, "overlap is nan"),
        ({"warn_above": 2.0}, "warn_above is 2.0"),
        ({"benchmarks": [Source("x"), Source("x")]}, "2 sources are called 'x'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decontamination(**({"benchmarks": [Source("x")]} | options))


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "b.jsonl: it has no rows"),
        (["x"], {"transform": "tests.unit.data.decontamination.test_decontamination.nothing"}, "1 rows give no prompt"),
        ([{"text": "a"}], {}, "b.jsonl:1: unknown format"),
        ([{"question": "a"}, {"question": "?!"}], {}, r"b.jsonl:2: .* has no words"),
        (["x"], {"columns": {"question": "ask"}}, "columns maps question to 'ask'"),
        (["x"], {"streaming": True}, "b streams"),
    ],
)
def test_benchmarks_without_items_or_prompts_are_refused(
    rows: list[Any], options: dict[str, Any], message: str, write: Write, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        ready([write("a", "x")], Decontamination([write("b", *rows, **options)]), tmp_path)


def nothing(row: dict[str, Any]) -> list[dict[str, Any]]:
    return []


def test_a_benchmark_that_is_trained_on_is_refused_before_anything_is_read(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = write("a", "x")
    monkeypatch.chdir(tmp_path)
    rule = Decontamination([Source("a.jsonl", name="b")])
    with pytest.raises(ValueError, match="benchmark b is the training source a itself"):
        SFTDataModule([source], byte_tokenizer(), document_filters=[rule])
    with pytest.raises(ValueError, match="benchmark b is the training source a itself"):
        OnPolicyDataModule([source], byte_tokenizer(), document_filters=[rule])
    parts = [Source("a.jsonl", split=split) for split in ("train[:50%]", "train[50%:]")]
    SFTDataModule(parts[:1], byte_tokenizer(), document_filters=[Decontamination(parts[1:])])


def test_planted_items_in_real_rows_are_all_found_and_no_other_row_is_left_out(write: Write, tmp_path: Path) -> None:
    """Among 1,000 real rows: 30 items of GSM8K with just over half of their words, and 30 with half of them."""
    folder = Path(__file__).parents[5] / "shared" / "data" / "gsm8k"
    if not folder.exists():
        pytest.skip("the real rows are not there")
    lines = (folder / "train.jsonl").read_text("utf-8").splitlines()
    questions = [json.loads(line)["question"] for line in lines]
    train, items = questions[:1000], questions[3000:3500]  # none of these is a near copy of one of those
    places = np.random.default_rng(0).choice(1000, 60, replace=False).tolist()
    for number, (place, item) in enumerate(zip(places, items[:60], strict=True)):
        train[place] = reworded(item, number, most=number < 30)
    data = ready([write("a", *train)], Decontamination([write("b", *items)]), tmp_path, max_length=4096)
    assert sorted({*range(1, 1001)} - {*rows_left(data)}) == sorted(place + 1 for place in places[:30])
    assert left_out(data.reports[0]) == {"overlaps with b": 30}


def reworded(item: str, seed: int, most: bool) -> str:
    """A run of an item's words, more than half of them or half of them, in other letters, marks and surroundings."""
    words = split_words(item)
    kept = len(words) // 2 + most
    assert kept >= 8
    start = seed % (len(words) - kept)
    return f"Riddle {seed}. {', '.join(words[start : start + kept]).upper()}... What comes out (in the end)?"
