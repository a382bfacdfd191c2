"""Whole training steps on a device that is not the CPU (``accelerator_steps.py``), in a process of their own."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from tests.processes import start


def run_steps(report: Path) -> int:
    """Run the cases, and write what pytest prints to a file."""
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]  # of the worker that started this process
    steps = Path(__file__).with_name("accelerator_steps.py")
    with report.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        return int(pytest.main([str(steps), "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist"]))


def test_steps_leave_no_tensor_on_the_cpu_and_wait_only_where_listed(tmp_path: Path) -> None:
    # autograd makes its queues for the devices that it knows at the first backward pass, which no other test may make
    process = start(run_steps, tmp_path / "report")
    process.join()
    printed = (tmp_path / "report").read_text()
    sys.stdout.write(printed)
    assert process.exitcode == 0, printed
    assert " passed" in printed
