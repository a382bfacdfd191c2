"""A resume is told of data that has changed: by content, of all of it, wherever it lies."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.data.preference import PreferenceDataModule
from lion_lightning.data.sft import SFTDataModule
from lion_lightning.data.sources.source import Source
from tests.unit.data.letters import byte_tokenizer

Row = dict[str, Any]
COUNT = 300


def turns(changed: Sequence[int] = ()) -> list[Row]:
    return [{"prompt": f"row {n:03}", "completion": "no!" if n in changed else "yes"} for n in range(COUNT)]


def pairs(changed: Sequence[int] = ()) -> list[Row]:
    return [
        {"prompt": f"row {n:03}", "chosen": "no!" if n in changed else "yes", "rejected": f"bad {n:03}"}
        for n in range(COUNT)
    ]


Make = Callable[..., PackedLoader]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """The loader of a data module whose sources hold these rows, each in a file of its own in this folder."""

    def make(kind: Any, *sources: list[Row], folder: str = "data", cache: str = "cache", **options: Any) -> Any:
        (tmp_path / folder).mkdir(exist_ok=True)
        named = []
        for number, rows in enumerate(sources):
            path = tmp_path / folder / f"rows-{number}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            named.append(Source(str(path), **options.pop(f"source_{number}", {})))
        data = kind(named, byte_tokenizer(), max_length=128, cache_dir=tmp_path / cache, **options)
        data.setup()
        return data.train_dataloader()

    return make


def place(loader: PackedLoader, batches: int) -> dict[str, Any]:
    reader = iter(loader)
    for _ in range(batches):
        next(reader)
    return loader.state_dict()


@pytest.mark.parametrize(("kind", "rows"), [(SFTDataModule, turns), (PreferenceDataModule, pairs)])
@pytest.mark.parametrize("changed", [[0], [COUNT - 1], [5, 77, 140, 141, 233]])
def test_answers_of_equal_length_that_were_changed_are_found_within_an_epoch(
    make: Make, kind: Any, rows: Any, changed: list[int]
) -> None:
    state = place(make(kind, rows()), 3)
    with pytest.raises(ValueError, match=r"batches have changed \(content of the documents was \w+, is \w+\)"):
        make(kind, rows(changed)).load_state_dict(state)


def test_they_are_found_in_any_source_of_a_mixture(make: Make) -> None:
    other = [{"prompt": f"other {n:03}", "completion": "yes"} for n in range(COUNT)]
    state = place(make(SFTDataModule, turns(), other), 3)
    other[77]["completion"] = "no!"
    with pytest.raises(ValueError, match="content of the documents"):
        make(SFTDataModule, turns(), other).load_state_dict(state)


def test_they_are_said_after_an_epoch(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    first = make(SFTDataModule, turns())
    state = place(first, len(first))
    make(SFTDataModule, turns([77])).load_state_dict(state)
    (said,) = [record.message for record in caplog.records if "goes on with" in record.message]
    assert "content of the documents was" in said


def test_the_same_data_in_another_folder_tokenized_anew_is_the_same(make: Make) -> None:
    state = place(make(SFTDataModule, turns()), 3)
    moved = make(SFTDataModule, turns(), folder="moved", cache="other cache")
    moved.load_state_dict(state)
    assert len(list(moved)) == len(moved) - 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"mask": "none"}, r"data\.mask was assistant, is none"),
        ({"source_0": {"fraction": 0.5}}, r"data\.sources\.0\.fraction was 1\.0, is 0\.5"),
    ],
    ids=["mask", "fraction"],
)
def test_a_setting_that_changed_the_data_is_named(make: Make, options: dict[str, Any], named: str) -> None:
    state = place(make(SFTDataModule, turns()), 3)
    with pytest.raises(ValueError, match=named):
        make(SFTDataModule, turns(), **options).load_state_dict(state)
