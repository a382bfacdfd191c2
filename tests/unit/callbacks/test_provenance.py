"""Where a run came from: written in full or not at all, and never what ends a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lion_lightning.callbacks import Provenance
from tests.unit.callbacks.conftest import Bench


def entries(folder: Path) -> list[int]:
    return [entry["step"] for entry in json.loads((folder / "run" / "provenance.json").read_text())]


def test_every_start_adds_an_entry_and_a_failed_write_loses_none(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.fit(bench.trainer(Provenance(), max_steps=1))
    bench.fit(bench.trainer(Provenance(), max_steps=1))
    assert entries(bench.folder) == [0, 0]
    write = Path.write_text

    def full(path: Path, text: str, *args: str, **options: str) -> int:
        write(path, text[:20], *args, **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"device: '.*run/provenance\.json'"):
        bench.fit(bench.trainer(Provenance(), max_steps=1))
    assert entries(bench.folder) == [0, 0]


@pytest.mark.parametrize("text", ["", "[{", "{}", "\x00"])
@pytest.mark.filterwarnings("ignore")
def test_a_file_that_is_no_list_of_starts_is_moved_out_of_the_way(bench: Bench, text: str) -> None:
    path = bench.folder / "run" / "provenance.json"
    path.parent.mkdir()
    path.write_text(text)
    bench.fit(bench.trainer(Provenance(), max_steps=1))
    assert entries(bench.folder) == [0]
    (aside,) = path.parent.glob("provenance.*.json")
    assert aside.read_text() == text
