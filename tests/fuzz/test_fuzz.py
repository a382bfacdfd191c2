"""A minute of fuzz breaks no rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.__main__ import fuzz

SECONDS = 60.0
MOST = {"configs": 150, "rows": 50, "checkpoints": 32, "files": 42, "replies": 430}
"""Cases of each target: the same on machines of all speeds. ``python -m tests.fuzz`` goes on beyond them."""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mutated_input_is_taken_or_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table, broken = fuzz(SECONDS, seed=0, most=MOST)
    print(table)
    assert not broken, "\n".join([*broken, table])
