"""Streams of rows: every row once, in an order that neither ranks nor workers change, from any batch on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from lion_lightning.data.groups import GroupDataModule
from lion_lightning.data.packing.best_fit import Wrapped
from lion_lightning.data.preference import PreferenceDataModule
from lion_lightning.data.sft import SFTDataModule
from lion_lightning.data.sources.source import Source
from lion_lightning.data.streaming.loader import StreamLoader
from lion_lightning.data.streaming.settings import StreamSettings
from lion_lightning.data.unpaired import UnpairedDataModule
from lion_lightning.types import PackedBatch
from tests.marks import slow
from tests.unit.data.letters import byte_tokenizer

TOKENIZER = byte_tokenizer()

UNTRAINED = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "1", "weight": 0}]}

Batches = list[list[str]]


def write(folder: Path, name: str, numbers: Iterable[int], files: int = 1) -> str:
    """Files of questions whose answers are the numbers; the answer says which row it is."""
    (folder / name).mkdir()
    rows = [{"question": "?" * (1 + number % 7), "answer": str(number)} for number in numbers]
    for file in range(files):
        part = rows[file * len(rows) // files : (file + 1) * len(rows) // files]
        (folder / name / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return str(folder / name / "*.jsonl")


@pytest.fixture
def loader(tmp_path: Path) -> Callable[..., StreamLoader]:
    a, b = write(tmp_path, "a", range(180), files=3), write(tmp_path, "b", range(1000, 1060))

    def loader(rank: int = 0, world_size: int = 1, batch_size: int = 1, **options: Any) -> StreamLoader:
        sources = [Source(a, name="a", streaming=True, weight=3), Source(b, name="b", streaming=True)]
        settings: dict[str, Any] = {"stream": StreamSettings(window=50, remember=100), "max_length": 128}
        data = SFTDataModule(
            sources, TOKENIZER, batch_size=batch_size, cache_dir=tmp_path / "cache", **settings | options
        )
        data.prepare_data()
        data.setup()
        made = data.train_dataloader()
        assert isinstance(made, StreamLoader)
        made.rank, made.world_size = rank, world_size
        return made

    return loader


Loader = Callable[..., StreamLoader]


def answers(batches: Iterable[PackedBatch]) -> Batches:
    """What each segment of each batch is trained to say; nothing for a batch without targets."""
    made = []
    for batch in batches:
        texts = [
            str(TOKENIZER.decode(batch.targets[batch.target_segments == n].tolist()))
            for n in range(len(batch.segments))
        ]
        made.append([text.removesuffix("<|im_end|>") for text in texts if text])
    return made


def flat(batches: Batches) -> list[str]:
    return [text for batch in batches for text in batch]


EACH_ONCE = sorted(map(str, [*range(180), *range(1000, 1060)]))


def test_every_row_comes_once_and_rows_are_full(loader: Loader) -> None:
    batches = list(loader())
    assert sorted(flat(answers(batches))) == EACH_ONCE
    assert (
        sum(len(batch.input_ids) for batch in batches) / (128 * len(batches)) > 0.85
    )  # of about 28 tokens each, so four a row


def test_workers_change_nothing(loader: Loader) -> None:
    assert answers(loader(num_workers=2)) == answers(loader())


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 1)])
def test_ranks_take_turns_in_one_sequence(loader: Loader, batch_size: int, workers: int) -> None:
    whole = answers(loader(batch_size=batch_size))
    ranks = [answers(loader(rank, 2, batch_size, num_workers=workers)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    taken = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert taken[: len(whole)] == whole
    assert flat(taken[len(whole) :]) == []  # a rank without rows keeps step


def test_an_epoch_has_another_order_and_the_same_rows(loader: Loader) -> None:
    made = loader()
    first = flat(answers(made))
    made.set_epoch(1)
    second = flat(answers(made))
    assert sorted(second) == sorted(first) == EACH_ONCE
    assert second != first
    made.set_epoch(0)
    assert flat(answers(made)) == first


def test_it_goes_on_at_the_next_batch_from_any(loader: Loader) -> None:
    whole = answers(loader())
    made = loader()
    states = [made.state_dict()]
    for _ in made:
        states.append(made.state_dict())
    for number in (0, 1, len(whole) // 2, len(whole) - 1):
        resumed = loader(num_workers=number % 2)
        resumed.load_state_dict(json_copy(states[number]))
        assert answers(resumed) == whole[number:], number
    last = loader()
    last.load_state_dict(states[-1])
    assert list(last) == []
    ended = loader()
    ended.load_state_dict(made.state_dict())
    assert ended.epoch == 1  # nothing is left of the first, which is known by now


def json_copy(state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint may hold: plain data, and the hashes as a tensor."""
    hashes = state["hashes"]
    return {**json.loads(json.dumps({**state, "hashes": None})), "hashes": hashes}


def test_a_state_can_be_set_back_to_an_earlier_step(loader: Loader) -> None:
    """As checkpoints within an accumulation window are."""
    whole = answers(loader())
    made = loader()
    batches = iter(made)
    for _ in range(len(whole) - 1):
        next(batches)
    state = made.state_dict() | {"batches": 2}
    resumed = loader()
    resumed.load_state_dict(state)
    assert answers(resumed) == whole[2:]


def test_another_number_of_ranks_goes_on_at_the_same_row(loader: Loader, caplog: pytest.LogCaptureFixture) -> None:
    whole = answers(loader())
    two = [loader(rank, 2) for rank in range(2)]
    states = []
    for made in two:
        batches = iter(made)
        for _ in range(5):
            next(batches)
        states.append(made.state_dict())
    resumed = loader()
    resumed.load_state_dict(states[0])
    assert answers(resumed) == whole[10:]
    assert "goes on at its row 10 with 1 rows in a batch of all ranks, where there were 2 before" in caplog.text
    again = loader()
    again.load_state_dict(resumed.state_dict() | {"batches": 8, "length": 0})  # three batches of one row later
    assert answers(again) == whole[13:]


def test_a_state_of_other_rows_is_refused(loader: Loader) -> None:
    made = loader()
    next(iter(made))
    with pytest.raises(ValueError, match=r"after batch 1 of epoch 0 of a stream, .*\(data\.seed was 0, is 1"):
        loader(seed=1).load_state_dict(made.state_dict())


def test_tokens_are_shared_out_by_weight_to_within_a_document(tmp_path: Path) -> None:
    """Sources with documents of other lengths; 3 to 1 in tokens at every moment, but for one document."""
    short, long = write(tmp_path, "short", range(400)), str(tmp_path / "long.jsonl")
    Path(long).write_text("".join(json.dumps({"question": "q" * 60, "answer": str(n)}) + "\n" for n in range(100)))
    sources = [Source(short, name="s", streaming=True, weight=3), Source(long, name="l", streaming=True)]
    data = SFTDataModule(sources, TOKENIZER, max_length=128, cache_dir=tmp_path, stream=StreamSettings(window=16))
    data.setup()
    made = data.train_dataloader()
    assert isinstance(made, StreamLoader)
    iterator = iter(made)
    for _ in range(20):
        next(iterator)
        tokens = [cursor.tokens for cursor in made._cursors]
        # Each is the furthest behind when it is drawn from, so they differ by a document at most.
        assert abs(tokens[0] / 3 - tokens[1]) <= 128
    documents = [cursor.documents for cursor in made._cursors]
    assert documents[0] > 5 * documents[1]


def test_rows_are_shared_out_by_weight(loader: Loader) -> None:
    made = loader(stream=StreamSettings(window=40, mix_by="rows", remember=0))
    next(iter(made))
    assert [cursor.documents for cursor in made._cursors] == [30, 10]  # a window


def test_duplicates_are_left_out_within_what_is_remembered(tmp_path: Path) -> None:
    path = write(tmp_path, "twice", [*range(40), *range(40), *range(20, 60)])
    kept = {}
    for remember in (0, 1000):
        data = SFTDataModule(
            [Source(path, name="twice", streaming=True)],
            TOKENIZER,
            max_length=128,
            cache_dir=tmp_path,
            stream=StreamSettings(window=32, remember=remember),
        )
        data.setup()
        kept[remember] = flat(answers(data.train_dataloader()))
        assert data.reports[0].rows == 120
    assert len(kept[0]) == 120
    assert sorted(kept[1000], key=int) == [str(number) for number in range(60)]
    assert data.reports[0].left_out["duplicate"].documents == 60


def test_what_is_validated_on_is_left_out(tmp_path: Path) -> None:
    path, held = write(tmp_path, "train", range(30)), write(tmp_path, "held", range(10, 20))
    data = SFTDataModule(
        [Source(path, name="train", streaming=True)], TOKENIZER, validation=[Source(held)], cache_dir=tmp_path
    )
    data.prepare_data()
    data.setup()
    found = flat(answers(data.train_dataloader()))
    assert sorted(map(int, found)) == [*range(10), *range(20, 30)]
    assert data.reports[0].left_out["in a validation source"].documents == 10


def test_documents_are_split_and_cut_as_elsewhere(tmp_path: Path) -> None:
    """Parts of a document are no duplicates of each other, and rows cut across windows hold every token once."""
    path = tmp_path / "texts.jsonl"
    texts = [chr(97 + number) * (10 + 25 * number) for number in range(8)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for options in ({"overlong": "split"}, {"overlong": "split", "packing": Wrapped()}):
        data = SFTDataModule(
            [Source(str(path), streaming=True, format="text")],
            TOKENIZER,
            max_length=50,
            cache_dir=tmp_path,
            stream=StreamSettings(window=5),
            **options,
        )
        data.setup()
        ids = sorted(token for batch in data.train_dataloader() for token in batch.input_ids.tolist())
        wanted = [token for text in texts for token in [*TOKENIZER(text).input_ids, TOKENIZER.eos_token_id]]
        assert ids == sorted(wanted)


def test_pairs_stream_too(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"question": "q" * (1 + n % 5), "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(1, 60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PreferenceDataModule(
        [Source(str(path), streaming=True)], TOKENIZER, max_length=64, cache_dir=tmp_path, stream=StreamSettings(16)
    )
    data.setup()
    chosen = [text for text in flat(answers(data.train_dataloader())) if text.startswith("yes")]
    assert sorted(chosen) == sorted(f"yes {n}" for n in range(1, 60))
    assert data.reports[0].to_dict()["kept"]["pairs"] == len(chosen)


def test_labeled_answers_and_groups_stream_too(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "q" * (1 + n % 5) + f" {n}", "answer": f"yes {n}", "thumbs_up": n % 3 == 0} for n in range(60)
    ]
    ranked: list[dict[str, Any]] = [
        {"question": f"q {n}", "answers": [f"{n} {rank}" for rank in range(2 + n % 3)], "ranks": [*range(2 + n % 3)]}
        for n in range(40)
    ]
    streams = []
    for name, lines in (("unpaired", rows), ("ranked", ranked)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in lines))
        streams.append([Source(str(path), streaming=True)])
    settings: dict[str, Any] = {"max_length": 64, "cache_dir": tmp_path, "stream": StreamSettings(16)}
    unpaired = UnpairedDataModule(streams[0], TOKENIZER, mismatched=False, **settings)
    groups = GroupDataModule(streams[1], TOKENIZER, **settings)
    for data in (unpaired, groups):
        data.setup()
    batches = list(unpaired.train_dataloader())
    assert sorted(flat(answers(batches))) == sorted(row["answer"] for row in rows)
    assert sum(sum(batch.values) for batch in batches) == 20
    batches = list(groups.train_dataloader())
    assert sorted(flat(answers(batches))) == sorted(text for row in ranked for text in row["answers"])
    assert sum(sum(batch.values) for batch in batches) == -sum(sum(row["ranks"]) for row in ranked)


def test_bad_rows_are_skipped_counted_and_written(tmp_path: Path) -> None:
    path = Path(write(tmp_path, "bad", range(20)).replace("*", "0"))
    path.write_text(path.read_text() + '{"question": "?", "answer": \n[1]\n')
    source = Source(str(path), name="bad", streaming=True, on_bad_row="skip")
    data = SFTDataModule([source], TOKENIZER, cache_dir=tmp_path)
    data.setup()
    assert len(flat(answers(data.train_dataloader()))) == 20
    messages = data.reports[0].messages
    assert messages["bad row"].total() == 2
    assert messages.bad_rows is not None
    assert [json.loads(line)["where"] for line in messages.bad_rows.open()] == [f"{path}:21", f"{path}:22"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_row_is_named_when_its_turn_comes(tmp_path: Path, workers: int) -> None:
    path = Path(write(tmp_path, "wrong", range(300)).replace("*", "0"))
    path.write_text(path.read_text() + '{"question": "?"}\n')
    data = SFTDataModule(
        [Source(str(path), streaming=True)],
        TOKENIZER,
        max_length=128,
        cache_dir=tmp_path,
        stream=StreamSettings(window=64),
        num_workers=workers,
    )
    data.setup()
    batches = iter(data.train_dataloader())
    assert len(next(batches).input_ids)
    with pytest.raises(ValueError, match=rf"^{path}:301: "):
        list(batches)


def test_a_stream_that_gives_nothing_says_why(tmp_path: Path) -> None:
    path = write(tmp_path, "long", range(10))
    data = SFTDataModule(
        [Source(path, name="long", streaming=True)], TOKENIZER, max_length=8, overlong="drop", cache_dir=tmp_path
    )
    data.setup()
    with pytest.raises(ValueError, match=r"nothing to train on \(long: 0 documents.* longer than 8 tokens"):
        next(iter(data.train_dataloader()))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "source wrong: it has no rows; name other files"),
        ("\n \n", "source wrong: it has no rows; name other files"),
        ((json.dumps(UNTRAINED) + "\n") * 3, "source wrong: no token of its 3 examples is supervised"),
    ],
)
@pytest.mark.parametrize("workers", [0, *slow(2)])
def test_a_source_that_trains_nothing_is_refused_beside_others(
    tmp_path: Path, text: str, error: str, workers: int
) -> None:
    good, path = write(tmp_path, "good", range(30)), tmp_path / "wrong.jsonl"
    path.write_text(text)
    sources = [Source(good, streaming=True), Source(str(path), name="wrong", streaming=True)]
    data = SFTDataModule(sources, TOKENIZER, max_length=64, cache_dir=tmp_path, num_workers=workers)
    data.setup()
    with pytest.raises(ValueError, match=f"^{error}"):
        list(data.train_dataloader())


def test_iterables_that_are_none_or_end_for_good_are_refused(tmp_path: Path) -> None:
    once = iter([{"question": "?", "answer": str(number)} for number in range(9)])
    makers: dict[str, Any] = {"once": lambda: once, "none": lambda: None}
    loaders = {}
    for name, make in makers.items():
        data = SFTDataModule(
            [Source(name, streaming=True, iterable=make)], TOKENIZER, max_length=64, cache_dir=tmp_path
        )
        data.setup()
        loaders[name] = data.train_dataloader()
    assert len(flat(answers(loaders["once"]))) == 9
    with pytest.raises(ValueError, match=r"^source once: it has no rows; have `iterable` begin anew at each call"):
        list(loaders["once"])
    with pytest.raises(ValueError, match=r"^none: TypeError: 'NoneType' object is not iterable; fix the iterable"):
        list(loaders["none"])


def test_the_log_says_what_is_read_and_what_is_missed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    data = SFTDataModule([Source(write(tmp_path, "a", range(3)), name="a", streaming=True)], TOKENIZER)
    data.setup()
    assert "train: a: streamed from 1 file(s)" in caplog.text
    assert "found among the last 1,000,000 documents" in caplog.text
    assert "a new document is taken for one with a chance of 5e-14" in caplog.text  # 10^6 / 2^64
    list(data.train_dataloader())
    assert "all of the stream in epoch 0: a: 3 documents" in caplog.text


@pytest.mark.parametrize("overlong", ["truncate", "split", "drop"])
def test_the_documents_are_those_of_the_mapped_way(tmp_path: Path, overlong: str) -> None:
    """Tokens, targets and their weights, of rows of several forms, with too long ones and duplicates among them."""
    rows: list[dict[str, Any]] = [{"question": "?" * (1 + n % 90), "answer": f"{n % 70}"} for n in range(1, 100)]
    rows += [{"text": "x" * n} for n in range(1, 150, 7)]
    turn = {"role": "user", "content": "hi"}
    for weight in (0, 0.5, 2):
        answer = {"role": "assistant", "content": f"of weight {weight}", "weight": weight}
        rows.append({"messages": [turn, answer, turn, {"role": "assistant", "content": "bye"}]})
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def documents(streaming: bool) -> list[Any]:
        source = Source(str(path), streaming=streaming)
        data = SFTDataModule([source], TOKENIZER, max_length=80, overlong=overlong, cache_dir=tmp_path)  # type: ignore[arg-type]
        data.prepare_data()
        data.setup()
        found = []
        for batch in data.train_dataloader():
            for number, segment in enumerate(batch.segments):
                chosen = batch.target_segments == number
                weights = None if batch.target_weights is None else batch.target_weights[chosen].tolist()
                weights = weights or [1.0] * int(chosen.sum())
                ids = batch.input_ids[segment.start : segment.stop].tolist()
                found.append((ids, batch.targets[chosen].tolist(), weights))
        return sorted(found)

    assert documents(True) == documents(False)


def test_files_may_move_and_may_not_change(tmp_path: Path) -> None:
    """Where they lie decides no row; which there are, and what is in them, does."""

    def loader(folder: str) -> StreamLoader:
        data = SFTDataModule(
            [Source(f"{tmp_path}/{folder}/*.jsonl", name="a", streaming=True)],
            TOKENIZER,
            max_length=128,
            cache_dir=tmp_path,
        )
        data.setup()
        made = data.train_dataloader()
        assert isinstance(made, StreamLoader)
        return made

    write(tmp_path, "here", range(30))
    write(tmp_path, "there", range(30))
    made = loader("here")
    whole = answers(made)
    next(iter(made))
    state = made.state_dict()
    moved = loader("there")
    moved.load_state_dict(state)
    assert answers(moved) == whole[1:]
    file = tmp_path / "there" / "0.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    for changed in ([*lines, lines[0]], lines[::-1]):  # longer; as long, in another order
        file.write_text("".join(changed))
        with pytest.raises(ValueError, match=r"files of source 0 was \w+, is \w+"):
            loader("there").load_state_dict(state)


def test_what_was_remembered_is_remembered_after_a_resume(tmp_path: Path) -> None:
    """Duplicates at distances around the few that are remembered, in blocks that a window's start lies within."""
    numbers = [n if n % 3 else max(0, n - (n % 37)) for n in range(400)]
    path = write(tmp_path, "again", numbers)
    other = write(tmp_path, "other", range(1000, 1200))

    def loader() -> StreamLoader:
        data = SFTDataModule(
            [Source(path, name="again", streaming=True), Source(other, name="other", streaming=True, weight=0.4)],
            TOKENIZER,
            max_length=256,
            cache_dir=tmp_path,
            stream=StreamSettings(window=23, remember=32),
        )
        data.setup()
        made = data.train_dataloader()
        assert isinstance(made, StreamLoader)
        return made

    made = loader()
    states, whole = [], []
    for batch in made:
        whole += answers([batch])
        states.append(json_copy(made.state_dict()))
    left_out = made.reports[0].left_out["duplicate"].documents
    assert 0 < left_out < len(numbers) - len(set(numbers))  # some are too far back
    for number in range(0, len(states), 7):
        resumed = loader()
        resumed.load_state_dict(states[number])
        assert answers(resumed) == whole[number + 1 :], number
        if number < len(states) - 1:
            assert resumed.reports[0].left_out["duplicate"].documents == left_out
            assert [report.to_dict() for report in resumed.reports] == [report.to_dict() for report in made.reports]
