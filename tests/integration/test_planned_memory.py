"""What `lion plan` estimates against what training takes, each in separate processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.benchmarks import benchmark

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")


@pytest.mark.parametrize(
    ("stage", "recompute", "strategy"),
    [
        pytest.param("SFT", "none", "auto", marks=pytest.mark.exhaustive),
        pytest.param("DPO", "full", "auto", marks=pytest.mark.slow),
        pytest.param("KTO", "none", "auto", marks=pytest.mark.exhaustive),
        pytest.param("GRPO of four", "none", "auto", marks=pytest.mark.exhaustive),
        pytest.param("reward model", "none", "auto", marks=pytest.mark.exhaustive),
        pytest.param("SFT", "full", "ddp", marks=[pytest.mark.distributed, pytest.mark.exhaustive]),
        pytest.param("DPO", "none", "fsdp", marks=[pytest.mark.distributed, pytest.mark.exhaustive]),
    ],
)
def test_the_estimated_peak_is_within_15_percent(stage: str, recompute: str, strategy: str, tmp_path: Path) -> None:
    memory = benchmark("memory")
    memory.write_tokenizer(str(tmp_path))
    found = memory.compare(memory.Case(memory.SMALL, stage, recompute, strategy=strategy), str(tmp_path))
    assert found.measured > 2 * found.libraries
    assert found.estimated == pytest.approx(found.measured, rel=0.15)
