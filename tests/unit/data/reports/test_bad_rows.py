"""Rows that cannot be used: an error, or left out, counted by cause and written to a file."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.encoding.trees import GroupEncoder, LabeledEncoder, PairEncoder
from lion_lightning.data.reports.bad_rows import leave_out
from lion_lightning.data.reports.row_messages import collect_messages
from lion_lightning.data.sft import SFTDataModule
from lion_lightning.data.sources.readers import Row
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.tokenize import tokenize
from lion_lightning.data.store.tokenized import TokenTable
from lion_lightning.rollouts.prompts.pool import PromptPool
from tests.unit.data.letters import CHATML, byte_tokenizer


def chat(question: str, answer: str = "Yes.") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


GOOD = [json.dumps(chat(f"Is {number} a number?")).encode() for number in range(6)]
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + CHATML
BAD: dict[str, tuple[bytes, str]] = {
    "broken JSON": (b'{"messages": [', "broken JSON (Expecting value)"),
    "not UTF-8": (b'{"text": "\xff"}', "not UTF-8 (invalid start byte)"),
    "no object": (b"[1, 2]", "a row must be a JSON object with named columns, not list"),
    "no form": (b'{"a": 1}', "unknown format: the row's keys are a"),
    "no answer": (
        b'{"messages": [{"role": "user", "content": "Hi"}]}',
        "no assistant turn to learn from",
    ),
    "template": (
        json.dumps({"system": "s", **chat("Hi")}).encode(),
        "the chat template cannot render the row: no system turns",
    ),
    "role": (
        b'{"messages": [{"role": "martian", "content": "Hi"}]}',
        "messages[N] has the role 'martian'",
    ),
}


def source_of(path: Path, *lines: bytes, **settings: Any) -> Source:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return Source(str(path), on_bad_row="skip", **settings)


def made(source: Source, cache: Path) -> TokenTable:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = NO_SYSTEM
    return tokenize(source, ChatEncoder(tokenizer), cache)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_an_error_or_left_out_counted_and_written(tmp_path: Path, name: str) -> None:
    line, cause = BAD[name]
    source = source_of(tmp_path / "rows.jsonl", GOOD[0], line, *GOOD[1:])
    table = made(source, tmp_path)
    assert (table.raw_rows, len(table), table.skipped_rows) == (7, 6, 0)
    assert [table.where(row).rpartition(":")[2] for row in range(6)] == ["1", "3", "4", "5", "6", "7"]
    assert table.messages["bad row"] == {cause: 1}
    assert table.messages["form"].total() == 6  # of the good rows alone
    written = [json.loads(text) for text in Path(str(table.messages.bad_rows)).read_text("utf-8").splitlines()]
    assert [(row["where"], row["cause"]) for row in written] == [(f"{source.path}:2", cause)]
    raw = line.decode(errors="replace")
    assert written[0]["row"] == (json.loads(raw) if name not in ("broken JSON", "not UTF-8") else raw)
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: ") as stopped:
        made(Source(source.path), tmp_path)
    assert str(stopped.value) == f"{source.path}:2: {written[0]['error']}"


LEFT_OUT = "the chat template leaves out the row's reasoning ('...') of message N"


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        *((f"the chat template leaves out the row's reasoning ({words!r}) of message 1; fix", LEFT_OUT) for words in
          ("hm", "two words", "a; b", "don't", "\"don't; do\"", "it's 'so'; and \"so\"", "\\", "'")),
        ("messages[3] has the role 'alien'; known roles are system, user", "messages[N] has the role 'alien'"),
        ("messages[3].weight is 'a lot; more'; a weight is a number", "messages[N].weight is '...'"),
    ],
)  # fmt: skip
def test_a_cause_has_no_words_of_the_row(message: str, cause: str) -> None:
    with collect_messages() as messages:
        written = leave_out(Row("x.jsonl:7", {"text": "a"}), ValueError(f"x.jsonl:7: {message}"))
    assert messages["bad row"] == {cause: 1}
    assert json.loads(written)["error"] == message


def test_good_rows_give_the_same_tokens_whatever_stands_between_them(tmp_path: Path) -> None:
    bad = [line for line, _ in BAD.values()]
    mixed = [line for pair in zip(GOOD, bad[:6], strict=True) for line in pair]
    assert made(source_of(tmp_path / "mixed.jsonl", *mixed), tmp_path).tokens == (
        made(source_of(tmp_path / "good.jsonl", *GOOD), tmp_path).tokens
    )


def test_the_cache_remembers_bad_rows_and_their_file_is_made_again(tmp_path: Path) -> None:
    source = source_of(tmp_path / "rows.jsonl", *GOOD, b"{", b"{")
    first = made(source, tmp_path)
    path = Path(str(first.messages.bad_rows))
    content = path.read_bytes()
    path.unlink()
    again = made(source, tmp_path)
    assert again.messages == first.messages
    assert path.read_bytes() == content
    assert content.count(b"\n") == 2


def test_cells_of_a_table(tmp_path: Path) -> None:
    source = source_of(tmp_path / "rows.csv", b"question,answer", b"a,b", b"a", b"c,d")
    table = made(source, tmp_path)
    assert table.messages["bad row"] == {"N cells, but N columns are named": 1}
    assert len(table) == 2
    assert json.loads(Path(str(table.messages.bad_rows)).read_text("utf-8"))["row"] == ["a"]


def test_pairs(tmp_path: Path) -> None:
    good = [json.dumps({"question": f"{n}?", "chosen": "a", "rejected": "b"}).encode() for n in range(3)]
    source = source_of(tmp_path / "pairs.jsonl", *good, b'{"question": "?", "chosen": "a"}', b'{"chosen": "a"}')
    table = tokenize(source, PairEncoder(byte_tokenizer()), tmp_path)
    assert (len(table), table.messages["bad row"].total()) == (3, 2)


@pytest.mark.parametrize(
    ("kind", "good", "bad", "cause"),
    [
        (
            LabeledEncoder,
            {"answer": "a", "label": True},
            {"answer": "a", "label": 0.5},
            "label is N.N, which is neither",
        ),
        (
            LabeledEncoder,
            {"answer": "a", "liked": "no"},
            {"answers": ["a"], "scores": [1]},
            "the row has ranked answers",
        ),
        (
            GroupEncoder,
            {"answers": ["a", "b"], "scores": [1, 2]},
            {"answers": ["a"], "scores": [1]},
            "a group needs two",
        ),
        (GroupEncoder, {"chosen": "a", "rejected": "b"}, {"answer": "a", "label": 1}, "the row has one answer"),
        (PairEncoder, {"answers": ["a", "b"], "ranks": [1, 2]}, {"answer": "a", "label": 1}, "the row has one answer"),
    ],
)
def test_answers(tmp_path: Path, kind: Any, good: dict[str, Any], bad: dict[str, Any], cause: str) -> None:
    rows = [{"question": f"{number}?", **row} for number, row in enumerate((good, bad, good))]
    source = source_of(tmp_path / "rows.jsonl", *(json.dumps(row).encode() for row in rows))
    table = tokenize(source, kind(byte_tokenizer()), tmp_path)
    assert [table.where(row).rpartition(":")[2] for row in range(len(table))] == ["1", "3"]
    ((found, count),) = table.messages["bad row"].items()
    assert (found.startswith(cause), count) == (True, 1)
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: "):
        tokenize(Source(source.path), kind(byte_tokenizer()), tmp_path)


def test_a_source_of_mostly_bad_rows_is_an_error(tmp_path: Path) -> None:
    half = source_of(tmp_path / "half.jsonl", *GOOD[:2], b"{", b"{")
    assert len(made(half, tmp_path)) == 2
    most = source_of(tmp_path / "most.jsonl", *GOOD[:2], b"{", b"{", b"[")
    for _ in range(2):  # and again, from the cache
        with pytest.raises(ValueError, match="3 of 5 rows are bad, and `on_bad_row: skip` leaves out half") as refused:
            made(most, tmp_path)
    assert "(2 times): broken JSON" in str(refused.value)


def test_reports_and_warnings_name_the_causes_and_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = source_of(tmp_path / "rows.jsonl", *GOOD, b"{", b"{", b'{"a": 1}', name="mine")
    data = SFTDataModule([source], byte_tokenizer(), cache_dir=tmp_path)
    with caplog.at_level(logging.WARNING):
        data.prepare_data()
        data.setup()
    assert data.train_mixture is not None
    (report,) = data.train_mixture.reports
    path = report.messages.bad_rows
    broken = "broken JSON (Expecting property name enclosed in double quotes)"
    assert report.changes()[-3:] == [
        f"bad rows left out, {broken}: 2",
        "bad rows left out, unknown format: the row's keys are a: 1",
        f"the bad rows are in {path}",
    ]
    expected = f"source mine: 3 of 9 rows are bad and left out; see {path}: {broken} (2), unknown format"
    assert expected in caplog.text
    assert str(tmp_path) not in json.dumps(data.description()["train"])  # a model card shows counts alone
    assert report.to_dict()["messages"]["bad row"] == {broken: 2, "unknown format: the row's keys are a": 1}


def test_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LION_CACHE", str(tmp_path))
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = NO_SYSTEM
    good = [json.dumps({"question": f"{n}?"}).encode() for n in range(4)]
    bad = [b"{", b'{"question": "Hi", "system": "s"}']
    pool = PromptPool([source_of(tmp_path / "prompts.jsonl", *good[:1], *bad, *good[1:])], tokenizer)
    assert [asked.prompt.where.rpartition(":")[2] for asked in pool.take(range(len(pool)))] == ["1", "4", "5", "6"]
    (messages,) = pool.messages.values()
    assert messages["bad row"].total() == 2
    assert Path(str(messages.bad_rows)).read_text("utf-8").count("\n") == 2
    with pytest.raises(ValueError, match="3 of 4 rows are bad"):
        PromptPool([source_of(tmp_path / "most.jsonl", good[0], *bad, b"{")], tokenizer)


def test_another_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="on_bad_row is 'ignore'; choose error or skip"):
        Source("a.jsonl", on_bad_row="ignore")  # type: ignore[arg-type]
