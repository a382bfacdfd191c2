"""The file of a learning record: what was written is read, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lion_lightning.data.learning.record import RecordedLosses
from tests.unit.data.learning.recorded import recorded


def test_what_was_written_is_read(tmp_path: Path) -> None:
    losses = recorded([(10, 4, 2), (1, 1, 1), (8, 4, 3)], targets=[2, 0, 5], share=0.5)
    losses.write(tmp_path / "a.arrow")
    found = RecordedLosses.read(tmp_path / "a.arrow")
    assert (found.weights, found.moments, found.places) == (losses.weights, losses.moments, losses.places)
    for name in ("digests", "targets", "nll"):
        np.testing.assert_array_equal(getattr(found, name), getattr(losses, name))
    found.write(tmp_path / "b.arrow")
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()


def test_a_record_of_nothing_is_read(tmp_path: Path) -> None:
    recorded([(10, 4)]).first(1).write(tmp_path / "a.arrow")
    assert RecordedLosses.read(tmp_path / "a.arrow").epochs == 0


def test_another_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    with pytest.raises(ValueError, match=r"a\.arrow: there is no learning record; name a file that"):
        RecordedLosses.read(path)
    recorded([(10, 4, 2)]).write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match=r"a\.arrow: damaged, or not a learning record \(.*\); name a file that"):
        RecordedLosses.read(path)
    losses = np.log([4.0]) * 2
    assert whole.count(losses.tobytes()) == 1
    path.write_bytes(whole.replace(losses.tobytes(), (losses * 2).tobytes()))
    with pytest.raises(ValueError, match=r"its content is not what was written"):
        RecordedLosses.read(path)


@pytest.mark.parametrize(
    "manifest",
    ["[]", "{}", '{"version": 9, "weights": ""}', '{"version": 1, "weights": "", "moments": [3]}', "[" * 10**5, "7"],
)
def test_a_manifest_of_another_form_is_refused(manifest: str, tmp_path: Path) -> None:
    recorded([(10, 4, 2)]).write(tmp_path / "a.arrow")
    with pa.memory_map(str(tmp_path / "a.arrow")) as file:
        table: Any = pa.ipc.open_file(file).read_all()
    table = table.replace_schema_metadata({"learning_record": manifest})
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match=r"b\.arrow: damaged, or not a learning record"):
        RecordedLosses.read(tmp_path / "b.arrow")
