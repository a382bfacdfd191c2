"""Trees of answers from files to packed batches: joined pairs, labeled answers, groups; mapped and streamed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from lion_lightning import GroupDataModule, PreferenceDataModule, Source, UnpairedDataModule
from lion_lightning.data.formats.pairing import AllPairs
from lion_lightning.data.streaming.settings import StreamSettings
from lion_lightning.types import PackedBatch
from tests.unit.data.letters import byte_tokenizer

TOKENIZER = byte_tokenizer()
ROOM = len("<user\n?>\n<assistant\n")
"""Tokens of a prompt with a question of one letter: ChatML markers are single tokens, all else is bytes."""

Row = dict[str, Any]
Make = Callable[..., Any]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A data module of one file of rows, set up."""

    def make(kind: type[Any], rows: Iterable[Row], streaming: bool = False, **options: Any) -> Any:
        path = tmp_path / f"rows-{len(list(tmp_path.iterdir()))}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = Source(str(path), name="rows", streaming=streaming)
        settings: Row = {"max_length": 64, "cache_dir": tmp_path / "cache"} | options
        data: Any = kind([source], TOKENIZER, **settings)
        data.prepare_data()
        data.setup()
        return data

    return make


def spoken(batch: PackedBatch) -> list[tuple[str, str]]:
    """The question, and what is trained, of each answer of a batch."""
    found = []
    for segment in batch.answers:
        prompt = batch.segments[batch.segments[segment].parent]
        question = str(TOKENIZER.decode(batch.input_ids[prompt.start : prompt.stop].tolist()))
        answer = str(TOKENIZER.decode(batch.targets[batch.target_segments == segment].tolist()))
        found.append((question.split("user\n")[1].split("<")[0], answer.removesuffix("<|im_end|>")))
    return found


def compared(loader: Any) -> list[tuple[str, str, str]]:
    """Question, chosen and rejected of every pair of an epoch."""
    found = []
    for batch in cast(Iterable[PackedBatch], loader):
        answers = spoken(batch)
        found += [(answers[chosen][0], answers[chosen][1], answers[rejected][1]) for chosen, rejected in batch.pairs]
    return found


def valued(loader: Any) -> list[tuple[str, str, float | None]]:
    """Question, answer and value of every answer of an epoch; None for a mismatched one."""
    found = []
    for batch in cast(Iterable[PackedBatch], loader):
        for (question, answer), value in zip(spoken(batch), batch.values, strict=True):
            found.append((question, answer, None if math.isnan(value) else value))
    return found


# --- pairs


def several_pairs(prompts: int) -> list[Row]:
    """Three rows for each prompt, as sets of binarized preferences have them."""
    pairs = (("good", "fair"), ("fair", "bad"), ("good", "bad"))
    return [{"question": chr(65 + n), "chosen": one, "rejected": other} for n in range(prompts) for one, other in pairs]


def test_rows_of_one_prompt_are_one_tree_and_every_pair_is_trained(make: Make) -> None:
    data = make(PreferenceDataModule, several_pairs(10))
    assert sorted(compared(data.train_dataloader())) == sorted(
        (row["question"], row["chosen"], row["rejected"]) for row in several_pairs(10)
    )
    (report,) = data.train_mixture.reports
    assert (report.prompts, report.answers, report.kept.documents) == (10, 30, 30)
    assert report.kept.tokens == 10 * (ROOM + sum(len(f"{answer}>\n") for answer in ("good", "fair", "bad")))
    line = (
        "joined: 30 pairs of 30 examples share 10 trees, one for each prompt, with 570 tokens fewer"  # as docs/data.md
    )
    assert line in report.changes()


def test_joined_rows_are_the_trees_of_ranked_rows(make: Make) -> None:
    ranked = [{"question": chr(65 + n), "answers": ["good", "fair", "bad"], "scores": [3, 2, 1]} for n in range(10)]
    loaders = [
        make(PreferenceDataModule, several_pairs(10)).train_dataloader(),
        make(PreferenceDataModule, ranked, pairing=AllPairs()).train_dataloader(),
    ]
    for one, other in zip(*loaders, strict=True):
        torch.testing.assert_close(one.input_ids, other.input_ids)
        assert one.segments == other.segments
        assert {*one.pairs} == {*other.pairs}


def test_the_state_knows_the_pairs_and_values(make: Make) -> None:
    row = {"question": "A", "answers": ["good", "fair", "bad"]}
    marks = []
    for scores in ([3, 2, 1], [3, 2, 0], [3, 1, 2]):
        data = make(PreferenceDataModule, [{**row, "scores": scores}], pairing=AllPairs())
        marks.append(data.train_dataloader().fingerprint())
    assert len({*marks}) == 3


# --- labeled answers


def thumbs(count: int) -> list[Row]:
    return [{"question": chr(65 + n), "answer": f"a{n}", "label": n % 3 == 0} for n in range(count)]


def test_every_answer_is_there_once_an_epoch_and_that_of_the_next_prompt_in_each(make: Make) -> None:
    data = make(UnpairedDataModule, thumbs(12))
    loader = data.train_dataloader()
    labels = [(chr(65 + n), f"a{n}", float(n % 3 == 0)) for n in range(12)]
    mismatched = [(chr(65 + n), f"a{(n + 1) % 12}", None) for n in range(12)]
    for epoch in range(2):
        loader.set_epoch(epoch)
        assert sorted(valued(loader), key=repr) == sorted([*labels, *mismatched], key=repr)
    alone = make(UnpairedDataModule, thumbs(12), mismatched=False).train_dataloader()
    assert sorted(valued(alone)) == sorted(labels)


def test_preference_rows_are_taken_apart(make: Make) -> None:
    data = make(UnpairedDataModule, several_pairs(2), mismatched=False)
    # In each prompt good is wanted twice and bad never; fair is there once unwanted and once wanted.
    labels = (("good", 1.0), ("fair", 0.0), ("fair", 1.0), ("bad", 0.0))
    assert sorted(valued(data.train_dataloader())) == sorted((question, *one) for question in "AB" for one in labels)
    assert data.train_mixture.reports[0].left_out["the same answer again"].documents == 4


@pytest.mark.parametrize("label", [True, False])
def test_labels_that_are_all_equal_are_refused(make: Make, label: bool) -> None:
    rows = [{**row, "label": label} for row in thumbs(3)]
    message = (
        rf"^data\.sources \(rows\): all 3 answers have the label {int(label)}, with nothing to tell them from; add"
    )
    with pytest.raises(ValueError, match=message):
        make(UnpairedDataModule, rows)


def test_one_prompt_has_no_mismatched_answer(make: Make) -> None:
    rows = [{**row, "question": "A"} for row in thumbs(3)]
    with pytest.raises(ValueError, match=r"^source rows: its answers are all to one prompt.*data\.mismatched: false"):
        make(UnpairedDataModule, rows)
    assert len(valued(make(UnpairedDataModule, rows, mismatched=False).train_dataloader())) == 3


# --- groups


def ranked(count: int, answers: int = 4) -> list[Row]:
    return [
        {"question": chr(65 + n), "answers": [f"{n}-{k}" for k in range(answers)], "scores": [*range(answers)]}
        for n in range(count)
    ]


def test_groups_come_whole_with_their_scores(make: Make) -> None:
    equal = {"question": "Z", "answers": ["y", "z"], "scores": [1, 1]}
    data = make(GroupDataModule, [*ranked(9), equal], batch_size=2)
    found = valued(data.train_dataloader())
    assert sorted(found) == sorted((chr(65 + n), f"{n}-{k}", float(k)) for n in range(9) for k in range(4))
    for batch in data.train_dataloader():
        assert not batch.pairs
        owners = [batch.segment_samples[segment] for segment in batch.answers]
        assert {owners.count(one) for one in owners} == {4}  # a group is in one batch
    assert data.train_mixture.reports[0].left_out["scores all equal"].documents == 2


def test_a_group_that_fits_no_row_is_refused_with_its_row(make: Make) -> None:
    longest = ROOM + 4 * len("1-0>\n")
    assert len(valued(make(GroupDataModule, ranked(2), row_length=longest).train_dataloader())) == 8
    with pytest.raises(
        ValueError, match=rf"\.jsonl:1: the prompt and its 4 answers.*set data\.row_length to {longest}"
    ):
        make(GroupDataModule, ranked(2), row_length=longest - 1)


def test_rows_read_in_processes_are_the_same(make: Make) -> None:
    found = [valued(make(GroupDataModule, ranked(5), num_workers=workers).train_dataloader()) for workers in (0, 1)]
    assert found[0] == found[1]


# --- streams

STREAM = StreamSettings(window=40, remember=1000)


def test_a_stream_joins_the_rows_that_are_read_together_and_cuts_what_is_longer_than_a_row(make: Make) -> None:
    rows = several_pairs(50)  # blocks of 64 rows: 21 prompts and a row, and so on
    options: Row = {"stream": STREAM, "row_length": ROOM + len("good>\nfair>\n")}
    data = make(PreferenceDataModule, rows, streaming=True, **options)
    loader = data.train_dataloader()
    assert sorted(compared(loader)) == sorted((row["question"], row["chosen"], row["rejected"]) for row in rows)
    (report,) = loader.reports
    # Prompts whose three rows lie in one block are three pairs in one tree, of which each row holds one.
    assert (report.joined.before, report.joined.after) == (150 - 2, 50)
    assert (report.cut.before, report.cut.after, report.prompts) == (50, 148, 150)


@pytest.mark.parametrize("done", [0, 1, 7, 20])
def test_a_stream_of_trees_goes_on_at_the_next_batch(make: Make, done: int) -> None:
    rows = [row for pair in zip(thumbs(40), thumbs(40), strict=True) for row in (pair[0], {**pair[1], "answer": "b"})]
    options: Row = {"stream": STREAM, "streaming": True, "row_length": 40, "max_length": 40}
    whole = [batch.input_ids.tolist() for batch in make(UnpairedDataModule, rows, **options).train_dataloader()]
    loader = make(UnpairedDataModule, rows, **options).train_dataloader()
    batches = iter(loader)
    before = [next(batches).input_ids.tolist() for _ in range(done)]
    state = loader.state_dict()
    again = make(UnpairedDataModule, rows, **options).train_dataloader()
    again.settings = loader.settings  # of another file with the same rows
    again.load_state_dict(state)
    assert before + [batch.input_ids.tolist() for batch in again] == whole
    assert again.reports[0].state() == loader_after(make, rows, options).reports[0].state()


def test_a_stream_that_begins_with_one_label_alone_is_warned_of(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    liked = [{**row, "label": True} for row in thumbs(30)]
    list(make(UnpairedDataModule, thumbs(30), streaming=True, stream=STREAM).train_dataloader())
    assert "have the label" not in caplog.text
    list(make(UnpairedDataModule, liked, streaming=True, stream=STREAM).train_dataloader())
    assert "data.sources (rows): all 30 answers have the label 1, with nothing to tell them from" in caplog.text


def loader_after(make: Make, rows: list[Row], options: Row) -> Any:
    loader = make(UnpairedDataModule, rows, **options).train_dataloader()
    list(loader)
    return loader
