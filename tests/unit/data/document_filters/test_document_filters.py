"""Rules that leave out examples by what they say: what they see, what is counted, and what is decided only once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from examples.prompt_filter import WithoutWords
from lion_lightning.data.document_filters.applied import AppliedFilters
from lion_lightning.data.document_filters.base import DocumentFilter, LeftOut
from lion_lightning.data.document_filters.candidates import Candidates, user_texts
from lion_lightning.data.formats.answers.forms import PAIRS
from lion_lightning.data.formats.columns import read_row
from lion_lightning.data.formats.sft import recognize
from lion_lightning.data.groups import GroupDataModule
from lion_lightning.data.on_policy import OnPolicyDataModule
from lion_lightning.data.preference import PreferenceDataModule
from lion_lightning.data.sft import SFTDataModule
from lion_lightning.data.sources.source import Source
from lion_lightning.data.unpaired import UnpairedDataModule
from lion_lightning.distributed.rendezvous import WorkerGroup
from lion_lightning.rollouts.prompts.pool import PromptPool
from tests.unit.data.letters import byte_tokenizer

Write = Callable[..., Source]
CAUSE = "a word of the list"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, *rows: dict[str, Any], **options: Any) -> Source:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Source(str(path), name=name, **options)

    return write


def ask(question: str, answer: str = "yes") -> dict[str, Any]:
    return {"question": question, "answer": answer}


class Counting(WithoutWords):
    """Counts how often it decides."""

    def __init__(self, words: list[str]) -> None:
        super().__init__(words)
        self._sizes: list[int] = []

    def leave_out(self, candidates: Candidates) -> LeftOut:
        self._sizes.append(len(candidates))
        lines = [f"first at {Path(candidates.places([0])[0]).name}"]
        return super().leave_out(candidates)._replace(report={"seen": len(candidates)}, lines=lines)


def ready(kind: Any, sources: list[Source], tmp_path: Path, *rules: DocumentFilter, **options: Any) -> Any:
    data = kind(
        sources, byte_tokenizer(), max_length=128, cache_dir=tmp_path / "cache", document_filters=[*rules], **options
    )
    data.prepare_data()
    data.setup()
    return data


def places(data: Any) -> list[str]:
    documents = data.train_mixture.documents
    return [Path(documents.where(number)).name for number in range(len(documents))]


def test_a_rule_sees_unique_examples_and_what_it_leaves_out_is_counted_by_cause(write: Write, tmp_path: Path) -> None:
    rows = [ask("a cat"), ask("a dog"), ask("a cat"), ask("a cow", "cat")]
    rule = Counting(["cat"])
    data = ready(SFTDataModule, [write("a", *rows), write("b", ask("a dog"), ask("cats"))], tmp_path, rule)
    assert rule._sizes == [3, 1]
    assert places(data) == ["a.jsonl:2", "a.jsonl:4"]  # a word of an answer is none of the prompt
    first, second = data.reports
    assert {cause: counts.documents for cause, counts in first.left_out.items()} == {"duplicate": 1, CAUSE: 1}
    assert {cause: counts.documents for cause, counts in second.left_out.items()} == {"duplicate": 1, CAUSE: 1}
    assert data.document_filters.lines() == ["a: first at a.jsonl:1", "b: first at b.jsonl:2"]
    (described,) = json.loads(json.dumps(data.description()))["document_filters"]
    assert described["words"] == ["cat"]
    assert described["found"] == [{"source": "a", "seen": 3}, {"source": "b", "seen": 1}]


def test_a_decision_is_made_once_and_kept_with_its_report(write: Write, tmp_path: Path) -> None:
    source = write("a", ask("a cat"), ask("a dog"))
    made = ready(SFTDataModule, [source], tmp_path, Counting(["cat"]))
    again = Counting(["cat"])
    found = ready(SFTDataModule, [source], tmp_path, again)
    assert again._sizes == []
    assert places(found) == places(made) == ["a.jsonl:2"]
    assert found.document_filters.lines() == made.document_filters.lines()
    other = Counting(["dog"])
    assert places(ready(SFTDataModule, [source], tmp_path, other)) == ["a.jsonl:1"]
    assert other._sizes == [2]


def test_a_damaged_decision_is_made_again(write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write("a", ask("a cat"), ask("a dog"))
    ready(SFTDataModule, [source], tmp_path, Counting(["cat"]))
    (kept,) = (tmp_path / "cache" / "document_filters").iterdir()
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "causes": {"x": [7]}}))
    assert places(ready(SFTDataModule, [source], tmp_path, Counting(["cat"]))) == ["a.jsonl:2"]
    assert f"{kept}: not positions among 2 examples" in caplog.text


def test_several_rules_follow_each_other_and_one_with_several_causes_counts_the_first(
    write: Write, tmp_path: Path
) -> None:
    class Twice(DocumentFilter):
        def leave_out(self, candidates: Candidates) -> LeftOut:
            number = np.arange(len(candidates))
            return LeftOut({"below 2": number < 2, "below 3": number < 3})

    source = write("a", *(ask(f"row {number}") for number in range(6)))
    data = ready(SFTDataModule, [source], tmp_path, Twice(), WithoutWords(["5", "1"]))
    assert {cause: counts.documents for cause, counts in data.reports[0].left_out.items()} == {
        "below 2": 2,
        "below 3": 1,
        CAUSE: 1,
    }
    assert places(data) == ["a.jsonl:4", "a.jsonl:5"]


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (PreferenceDataModule, {"prompt": "a {} ", "chosen": "yes", "rejected": "no"}),
        (UnpairedDataModule, {"prompt": "a {} ", "completion": "yes", "label": True}),
        (GroupDataModule, {"prompt": "a {} ", "answers": ["yes", "no"], "scores": [1, 0]}),
    ],
)
def test_prompts_with_answers_are_left_out_with_all_of_them(
    kind: Any, row: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    rows = [{**row, "prompt": row["prompt"].format(animal)} for animal in ("cat", "dog", "cow")]
    if "label" in row:
        rows[1]["label"] = False
    data = ready(kind, [write("a", *rows)], tmp_path, WithoutWords(["cat"]))
    assert sorted(set(places(data))) == ["a.jsonl:2", "a.jsonl:3"]
    units = 2 if "answers" in row else 1  # answers of a group, pairs, labeled answers
    assert data.reports[0].left_out[CAUSE].documents == units


def test_what_validates_is_not_filtered(write: Write, tmp_path: Path) -> None:
    rows = [ask(f"{animal} {number}") for animal in ("cat", "dog") for number in range(40)]
    data = ready(
        SFTDataModule, [write("a", *rows)], tmp_path, WithoutWords(["cat"]), validation=[write("v", ask("a cat"))]
    )
    assert len(data.validation_mixture.documents) == 1
    shared, plain = (
        ready(SFTDataModule, [write("a", *rows)], tmp_path, *rules, validation_share=0.25)
        for rules in ([WithoutWords(["cat"])], [])
    )
    held = len(plain.validation_mixture.documents)
    assert len(shared.validation_mixture.documents) == held
    assert len(plain.train_mixture.documents) == 80 - held
    assert shared.reports[0].left_out[CAUSE].documents == 80 - held - len(shared.train_mixture.documents)


def test_bad_rows_that_are_left_out_move_no_decision_to_another_row(write: Write, tmp_path: Path) -> None:
    """A row that cannot be read, and one that is read and then cannot be rendered."""
    unrendered = {"messages": [{"role": "user", "content": "dog", "name": 1}, {"role": "assistant", "content": "x"}]}
    rows = [ask("dog 1"), {"question": 3}, ask("cat 1"), unrendered, ask("dog 2"), ask("cat 2"), ask("dog 3")]
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['name'] %}{{ raise_exception('no names') }}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    )
    source = write("a", *rows, on_bad_row="skip")
    data = SFTDataModule([source], tokenizer, cache_dir=tmp_path / "c", document_filters=[WithoutWords(["cat"])])
    data.prepare_data()
    data.setup()
    assert data.reports[0].messages["bad row"].total() == 2
    assert places(data) == ["a.jsonl:1", "a.jsonl:5", "a.jsonl:7"]


def test_a_stream_is_filtered_block_by_block(write: Write, tmp_path: Path) -> None:
    rows = [ask(f"{animal} {number}") for number in range(100) for animal in ("cat", "dog")]
    rule = Counting(["cat"])
    data = ready(SFTDataModule, [write("a", *rows, streaming=True)], tmp_path, rule)
    batches = [*data.train_dataloader()]
    assert data.reports[0].left_out[CAUSE].documents == data.reports[0].kept.documents == 100
    assert sum(len(batch.sample_indices) for batch in batches) == 100
    assert rule._sizes == [64, 64, 64, 8]


def test_prompts_of_rounds_are_filtered_and_counted(write: Write, tmp_path: Path) -> None:
    rows = [{"question": text} for text in ("a cat", "a dog", "a cat", "cats", "a cow")]
    sources = [write("a", *rows), write("b", {"question": "a hen"}, fraction=2.0)]
    filters = AppliedFilters.of([Counting(["cat"])], sources, tmp_path)
    pool = PromptPool(sources, byte_tokenizer(), document_filters=filters)
    assert len(pool) == 3
    assert pool.left_out == {"duplicate": 1, CAUSE: 2}
    asked = pool.take(pool.order.tolist())
    assert [prompt.row["question"] for prompt, _ in asked] == ["a dog", "a cow", "a hen", "a hen"]
    assert filters.lines() == ["a: first at a.jsonl:1", "b: first at b.jsonl:1"]
    data = OnPolicyDataModule(
        sources, byte_tokenizer(), cache_dir=tmp_path, document_filters=[WithoutWords(["hen", "cow"])]
    )
    data.setup()
    assert data.pool.left_out == {"duplicate": 1, CAUSE: 2}
    assert len(data.pool) == 3


def test_ranks_and_resumed_runs_compare_the_rules(write: Write, tmp_path: Path) -> None:
    source = write("a", ask("a dog"))
    made = [ready(SFTDataModule, [source], tmp_path, WithoutWords([word])) for word in ("x", "x", "y")]
    settings = [data.batch_settings()["document_filters"] for data in made]
    assert settings[0] == settings[1] != settings[2]
    loaders = [data.train_dataloader() for data in made]
    assert loaders[0].settings == loaders[1].settings != loaders[2].settings


def test_the_first_of_several_ranks_decides_for_all(write: Write, tmp_path: Path) -> None:
    data = ready(SFTDataModule, [source := write("a", ask("a cat"), ask("a dog"))], tmp_path)
    (selection,), _ = data.split_validation([source])
    encoder, rules = data.make_encoder(), [Counting(["cat"]), Counting(["cat"])]
    left: dict[int, Any] = {}

    def decide(rank: int) -> None:
        workers = WorkerGroup(tmp_path, rank, 2, "attempt")
        with workers.heartbeat():
            left[rank] = AppliedFilters([rules[rank]], tmp_path / "shared").apply(selection, encoder, workers)

    waiting = Thread(target=decide, args=(1,))
    waiting.start()  # before there is anything
    decide(0)
    waiting.join(20)
    assert [rule._sizes for rule in rules] == [[2], []]
    assert left[0].spans.examples.tolist() == left[1].spans.examples.tolist() == [1]
    assert left[0].left_out == left[1].left_out


def test_a_rule_that_needs_all_examples_refuses_a_stream(write: Write) -> None:
    class LongerThanMost(WithoutWords):
        needs_all_examples = True

    with pytest.raises(ValueError, match="LongerThanMost needs all examples of a source, and a streams"):
        SFTDataModule([write("a", streaming=True)], byte_tokenizer(), document_filters=[LongerThanMost([])])


def test_a_decision_of_the_wrong_form_is_refused(write: Write, tmp_path: Path) -> None:
    class Wrong(DocumentFilter):
        def leave_out(self, candidates: Candidates) -> LeftOut:
            return LeftOut({"x": np.zeros(1, np.bool_)})

    with pytest.raises(ValueError, match=r"Wrong\.leave_out gives \(1,\) of bool for 'x'.* each of the 2 examples"):
        ready(SFTDataModule, [write("a", ask("a"), ask("b"))], tmp_path, Wrong())


def test_rows_that_have_changed_since_they_were_tokenized_are_refused(write: Write, tmp_path: Path) -> None:
    source = write("a", ask("a"), ask("b"))
    data = ready(SFTDataModule, [source], tmp_path)
    (selection,), _ = data.split_validation([source])
    candidates = Candidates.of(selection, data.make_encoder())
    assert [*candidates.user_texts()] == [("a",), ("b",)]
    write("a", ask("a"))
    with pytest.raises(ValueError, match="give 1 examples, and gave 2 when they were tokenized"):
        list(candidates.read())


def test_the_texts_of_users_in_every_form() -> None:
    say = [{"role": role, "content": text} for role, text in (("system", "s"), ("user", "q"), ("assistant", "a"))]
    more = {"role": "user", "content": "r"}
    assert user_texts(recognize({"messages": [*say, more, say[2]]})) == ("q", "r")
    assert user_texts(recognize({"instruction": "q", "input": "r", "output": "a"})) == ("q\n\nr",)
    assert user_texts(recognize({"prompt": "q", "completion": "a"})) == ("q",)
    assert user_texts(recognize({"prompt": "", "completion": "a"})) == ("a",)
    assert user_texts(recognize({"text": "t"})) == ("t",)
    pair = read_row({"chosen": [*say, more, say[2]], "rejected": [*say, more, *say[2:]]}, {}, PAIRS)
    assert pair is not None
    assert user_texts(pair) == ("q", "r")
