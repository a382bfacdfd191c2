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
    sys.modules[spec.name] = module  # where its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("stage", "checkpointing", "strategy"),
    [
        pytest.param("SFT", False, "auto", marks=pytest.mark.slow),
        pytest.param("DPO", True, "auto", marks=pytest.mark.slow),
        pytest.param("SFT", True, "ddp", marks=pytest.mark.distributed),
        pytest.param("DPO", False, "fsdp", marks=pytest.mark.distributed),
    ],
)
def test_the_reckoned_peak_is_within_15_percent(
    stage: str, checkpointing: bool, strategy: str, benchmark: ModuleType, tmp_path: Path
) -> None:
    benchmark.write_tokenizer(str(tmp_path))
    found = benchmark.compare(benchmark.Case(benchmark.SMALL, stage, checkpointing, strategy=strategy), str(tmp_path))
    assert found.measured > 2 * found.libraries
    assert found.reckoned == pytest.approx(found.measured, rel=0.15)
