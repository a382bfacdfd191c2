"""What `lion plan` estimates against what training takes, each in processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.benchmarks import benchmark

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")


@pytest.mark.parametrize(
    ("stage", "checkpointing", "strategy"),
    [
        pytest.param("SFT", False, "auto", marks=pytest.mark.exhaustive),
        pytest.param("DPO", True, "auto", marks=pytest.mark.slow),
        pytest.param("SFT", True, "ddp", marks=[pytest.mark.distributed, pytest.mark.exhaustive]),
        pytest.param("DPO", False, "fsdp", marks=pytest.mark.distributed),
    ],
)
def test_the_estimate_is_within_15_percent(stage: str, checkpointing: bool, strategy: str, tmp_path: Path) -> None:
    memory = benchmark("memory")
    memory.write_tokenizer(str(tmp_path))
    found = memory.compare(memory.Case(memory.SMALL, stage, checkpointing, strategy=strategy), str(tmp_path))
    assert found.measured > 2 * found.libraries
    assert found.estimated == pytest.approx(found.measured, rel=0.15)
