"""What docs/planning.md says is what was measured, and what the code reckons."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks import ROOT, benchmark
from tests.marks import exhaustive

FIGURES = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text())
PAGE = (ROOT / "docs" / "planning.md").read_text().splitlines()


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
@pytest.mark.parametrize(("stage", "placements"), [("SFT", 1), *exhaustive(("SFT", 3), ("DPO", 3))])
def test_the_page_has_what_is_reckoned_of_2b(stage: str, placements: int) -> None:
    plans = benchmark("plans")
    for title, job, kinds in plans.cases():
        if title.startswith(f"2B | {stage}"):
            for row in plans.rows(title, job, kinds[:placements]):
                assert row in PAGE
