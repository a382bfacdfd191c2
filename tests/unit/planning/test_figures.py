"""What docs/planning.md says is what was measured, and what the code reckons."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
FIGURES = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text())
PAGE = (ROOT / "docs" / "planning.md").read_text().splitlines()


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_measured_table() -> None:
    memory = benchmark("memory")
    table = [*memory.HEADER, *memory.rows(FIGURES)]
    start = PAGE.index(table[0])
    assert PAGE[start : start + len(table)] == table


def test_every_measured_peak_is_met_within_15_percent() -> None:
    assert {figure["strategy"] for figure in FIGURES} == {"auto", "ddp", "fsdp"}
    for figure in FIGURES:
        assert figure["reckoned"] == pytest.approx(figure["measured"], rel=0.15), figure


@pytest.mark.slow
def test_the_page_has_what_is_reckoned_of_2b() -> None:
    plans = benchmark("plans")
    for case in plans.cases():
        if case[0].startswith("2B"):
            for row in plans.rows(*case):
                assert row in PAGE
