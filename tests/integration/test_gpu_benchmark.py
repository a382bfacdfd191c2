"""benchmarks/gpu.py is for a machine that few have; here each of its lines runs with a tiny model on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import ROOT
from tests.marks import exhaustive


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("parts", "peers"),
    [
        (("machine", "parity", "dpo", "round"), ["TRL", "TRL", "bare generate"]),  # speed and memory of a stage
        *exhaustive((("sft",), ["TRL", "TRL"]), (("grpo",), ["TRL", "TRL"])),  # test_tree_benchmarks.py runs GRPO's
    ],
)
def test_the_script_for_gpus_runs_whole_on_a_cpu(tmp_path: Path, parts: tuple[str, ...], peers: list[str]) -> None:
    out = tmp_path / "gpu.json"
    tiny = ["--tiny", "--device", "cpu", "--rounds", "1", "--out", str(out), "--only", *parts]
    command = [sys.executable, "benchmarks/gpu.py", *tiny]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["errors"] == {}
    assert all(check["passed"] for check in found["parity"])
    assert bool(found["parity"]) == ("parity" in parts)
    assert set(found["seconds"]) == {*parts}
    against = [measurement["against"] for measurement in found["measurements"] if "FLOP/s" not in measurement["what"]]
    assert [name.partition(", ")[0] for name in against] == peers
