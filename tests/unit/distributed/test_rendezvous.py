"""Work shared through a folder; threads stand for processes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lion_lightning.data.sources.source import Source
from lion_lightning.data.store import tokenize as tokenizing
from lion_lightning.data.store.tokenize import tokenize
from lion_lightning.distributed import rendezvous as module
from lion_lightning.distributed.rendezvous import RankLostError, WorkerGroup, _remove_old_messages
from tests.unit.data.letters import Letters


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(tokenizing, "_MIN_SHARD_ROWS", 2)


def ranks(folder: Path, work: Callable[[WorkerGroup], Any], world: int = 2, attempt: str = "now") -> list[Any]:
    """What each rank gives back, or raises."""

    def one(rank: int) -> Any:
        place = WorkerGroup(folder, rank, world, attempt)
        try:
            with place.heartbeat():
                return work(place)
        except (RuntimeError, ValueError) as error:
            return error

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(one, range(world)))


def write(folder: Path, rows: Iterable[Any]) -> Source:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(str(path))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "tokens").glob("*/*"))}


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_every_item_is_done_by_one_rank(world: int) -> None:
    items = [*range(5)]
    places = [WorkerGroup(rank=rank, size=world) for rank in range(world)]
    assert sorted(item for place in places for item in place.strided(items)) == items
    assert [item for place in places for item in place.contiguous(items)] == items


def test_a_rank_that_fails_stops_those_that_wait(tmp_path: Path) -> None:
    (tmp_path / "group-before").mkdir()
    (tmp_path / "group-before" / "failed-0").write_text("of an earlier start")

    def work(place: WorkerGroup) -> None:
        if place.rank == 1:
            raise ValueError("no luck here")
        place.wait_for([tmp_path / "never"])

    waited, failed = ranks(tmp_path, work)
    assert str(failed) == "no luck here"
    assert str(waited) == "rank 1 failed: ValueError: no luck here"


def test_a_rank_that_is_gone_without_a_word_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    place = WorkerGroup(tmp_path, 0, 2, "now")
    with pytest.raises(RankLostError, match=r"rank 1 was lost: no heartbeat.*start again"), place.heartbeat():
        place.wait_for([tmp_path / "never"])


def test_one_that_takes_long_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.15)

    def work(place: WorkerGroup) -> bool:
        if place.rank == 1:
            time.sleep(0.4)
            (tmp_path / "late").touch()
        place.wait_for([tmp_path / "late"])
        return True

    assert ranks(tmp_path, work) == [True, True]


def test_ranks_that_are_about_to_do_different_things_all_say_so(tmp_path: Path) -> None:
    both = ranks(tmp_path, lambda place: place.require_same("rows of a", "a", str(place.rank == 2)), world=3)
    assert {str(error) for error in both} == {"rows of a: rank 2 has another than rank 0; give all ranks the same"}


class Recording(Letters):
    """Knows what it has encoded."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode_samples(self, examples: Any, where: Any) -> Any:
        self.seen += [example.text for example in examples]
        return super().encode_samples(examples, where)


def test_ranks_share_the_rows_and_make_the_store_of_one(tmp_path: Path) -> None:
    rows = [{"text": "Ab" * (1 + number % 4) + str(number)} for number in range(15)]
    source = write(tmp_path, rows)
    tokenize(source, Letters(), tmp_path / "one")
    encoders = [Recording() for _ in range(3)]
    ranks(tmp_path, lambda place: tokenize(source, encoders[place.rank], tmp_path / "three", place), world=3)
    assert contents(tmp_path / "three") == contents(tmp_path / "one")
    assert len(contents(tmp_path / "one")) == 2 * 8
    assert sorted(text for encoder in encoders for text in encoder.seen) == sorted(row["text"] for row in rows)
    assert all(0 < len(encoder.seen) < 15 for encoder in encoders)


def test_all_ranks_name_the_row_that_a_single_process_names(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": f"A{number}"} for number in range(12)]
    rows[5], rows[9] = {"nonsense": 1}, {"nonsense": 2}  # one of each rank
    source = write(tmp_path, rows)
    with pytest.raises(ValueError, match=r"a\.jsonl:6: ") as alone:
        tokenize(source, Letters(), tmp_path / "one")
    said = ranks(tmp_path, lambda place: tokenize(source, Letters(), tmp_path / "two", place))
    assert [(type(error), str(error)) for error in said] == [(ValueError, str(alone.value))] * 2


def test_ranks_leave_out_the_same_bad_rows_as_one_and_write_them_to_one_file(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": f"A{number}"} for number in range(12)]
    rows[1], rows[5], rows[9] = {"nonsense": 1}, {"nonsense": 2}, {"text": ""}
    source = replace(write(tmp_path, rows), on_bad_row="skip")
    alone = tokenize(source, Letters(), tmp_path / "one")
    tables = ranks(tmp_path, lambda place: tokenize(source, Letters(), tmp_path / "three", place), world=3)
    assert contents(tmp_path / "three") == contents(tmp_path / "one")
    assert [table.messages for table in tables] == [alone.messages] * 3
    assert [len(table) for table in tables] == [9] * 3
    written = [json.loads(line)["where"] for line in contents(tmp_path / "three")["bad_rows.jsonl"].splitlines()]
    assert written == [f"{source.path}:{line}" for line in (2, 6, 10)]


def test_a_second_start_makes_only_what_the_first_has_not(tmp_path: Path) -> None:
    source = write(tmp_path, ({"text": f"A{number}"} for number in range(12)))
    tokenize(source, Letters(), tmp_path / "one")
    ranks(tmp_path, lambda place: tokenize(source, Letters(), tmp_path / "two", place))
    (folder,) = (tmp_path / "two" / "tokens").iterdir()
    (folder / "00001-of-00006.json").unlink()  # as if killed before the manifest
    (folder / "00004-of-00006.arrow").unlink()
    encoders = [Recording(), Recording()]
    ranks(tmp_path, lambda place: tokenize(source, encoders[place.rank], tmp_path / "two", place), attempt="second")
    assert [encoder.seen for encoder in encoders] == [["A2", "A3"], ["A8", "A9"]]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_ranks_that_see_other_files_are_told(tmp_path: Path) -> None:
    class Other(Letters):
        def fingerprint(self) -> str:
            return "another tokenizer"

    source = write(tmp_path, [{"text": "A"}])
    encoders = [Letters(), Other()]
    said = ranks(tmp_path, lambda place: tokenize(source, encoders[place.rank], tmp_path / "two", place))
    assert [str(error) for error in said] == [
        f"{source.path}: files, tokenizer or transform: rank 1 has another than rank 0; give all ranks the same"
    ] * 2


def test_messages_of_killed_ranks_go_after_a_day_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    old = time.time() - 90_000
    for name, alive in (("group-dead", old), ("group-living", time.time())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "alive-0").touch()
        os.utime(tmp_path / name / "alive-0", (alive, alive))
        os.utime(tmp_path / name, (old, old))
    (tmp_path / "sign-dead").touch()
    os.utime(tmp_path / "sign-dead", (old, old))
    (tmp_path / "other").touch()
    os.utime(tmp_path / "other", (old, old))
    _remove_old_messages(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["group-living", "other"]
