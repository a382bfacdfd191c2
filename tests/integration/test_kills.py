"""Two kills at random moments, by the benchmark that makes a hundred: the end is the undisturbed run's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import ROOT


@pytest.mark.slow
def test_runs_that_were_killed_end_equal(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--kills", "2", "--seed", "2", "--kinds", "sft"]
    done = subprocess.run([*command, "--folder", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every run ended equal" in done.stdout
