"""What ranks that were killed leave in the cache is removed, once nobody can be alive there."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lion_lightning.distributed.preparing import _remove_old_notes


def test_notes_of_killed_ranks_go_after_a_day_and_those_of_living_ones_stay(tmp_path: Path) -> None:
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
    _remove_old_notes(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["group-living", "other"]
