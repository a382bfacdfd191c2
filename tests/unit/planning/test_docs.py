"""What docs/planning.md says is what was measured, and what the code estimates."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks import ROOT, benchmark

FIGURES = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text())
PAGE = (ROOT / "docs" / "planning.md").read_text().splitlines()


def test_the_page_has_the_measured_table() -> None:
    memory = benchmark("memory")
    table = [*memory.HEADER, *memory.rows(FIGURES)]
    start = PAGE.index(table[0])
    assert PAGE[start : start + len(table)] == table


def test_the_page_of_steps_within_the_backward_pass_has_its_table() -> None:
    memory = benchmark("memory")
    page = (ROOT / "docs" / "systems" / "collie.md").read_text().splitlines()
    figures = json.loads((ROOT / "benchmarks" / "results" / "fused_backward.json").read_text())
    table = [*memory.HEADER, *memory.rows(figures)]
    start = page.index(table[0])
    assert page[start : start + len(table)] == table
    for figure in figures:
        assert figure["estimated"] == pytest.approx(figure["measured"], rel=0.15), figure


def test_every_measured_peak_is_met_within_15_percent() -> None:
    assert {figure["strategy"] for figure in FIGURES} == {"auto", "ddp", "fsdp"}
    for figure in FIGURES:
        assert figure["estimated"] == pytest.approx(figure["measured"], rel=0.15), figure


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", ["SFT", "DPO"])
def test_the_page_has_what_is_estimated_of_2b(stage: str) -> None:
    plans = benchmark("plans")
    for case in plans.cases():
        if case[0].startswith(f"2B | {stage}"):
            for row in plans.rows(*case):
                assert row in PAGE
