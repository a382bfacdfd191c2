"""What `lion plan` reckons against what training takes, each in processes of their own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "memory.py"
    spec = importlib.util.spec_from_file_location("benchmarks_memory", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("stage", "checkpointing", "ranks"),
    [
        pytest.param("SFT", False, 1, marks=pytest.mark.slow),
        pytest.param("DPO", True, 1, marks=pytest.mark.slow),
        pytest.param("SFT", True, 2, marks=pytest.mark.distributed),
        pytest.param("DPO", False, 2, marks=pytest.mark.distributed),
    ],
)
def test_the_reckoned_peak_is_within_15_percent(
    stage: str, checkpointing: bool, ranks: int, benchmark: ModuleType, tmp_path: Path
) -> None:
    benchmark._write_tokenizer(str(tmp_path))
    policy = {"config": benchmark.LLAMA, "gradient_checkpointing": checkpointing}
    job = {"policy": policy, "tokenizer": str(tmp_path), "stage": stage, "tokens": 1024, "ranks": ranks}
    measured, reckoned = benchmark.compare(job)
    assert measured > 500
    assert reckoned == pytest.approx(measured, rel=0.15)
