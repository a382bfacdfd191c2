"""What a run of the benchmark suite leaves behind: whether targets are met, the table in the page, failures by name."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks import ROOT, benchmark

PAGE = "before\n<!-- bench begins -->\nold\n<!-- bench ends -->\nafter\n"


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return benchmark("bench")


@pytest.mark.parametrize(("least", "most", "met"), [(2.0, None, True), (2.1, None, False), (None, 1.9, False)])
def test_a_target_is_held_against_the_median_of_the_rounds_own_ratios(
    suite: ModuleType, least: float | None, most: float | None, met: bool
) -> None:
    # ratios 2, 1 and 8: their median is 2, while the medians' ratio is 4 / 2
    measurement = suite.Measurement("SFT", "tokens/s", [4.0, 2.0, 8.0], [2.0, 2.0, 1.0], "TRL", least=least, most=most)
    assert (measurement.ratio, measurement.met) == (2.0, met)
    said = "met" if met else "missed"
    target = f">= {least:g}" if least else f"<= {most:g}"
    assert measurement.row() == f"| SFT, tokens/s | TRL | 4 | 2 | 2 (1-8) | {target} | {said} |"


def test_the_table_is_put_between_its_marks_and_every_round_into_the_file(suite: ModuleType, tmp_path: Path) -> None:
    page, file = tmp_path / "page.md", tmp_path / "new" / "cpu.json"
    page.write_text(PAGE, encoding="utf-8")
    measurement = suite.Measurement("packing", "s", [1.5, 1.0, 2.0], most=10.0)
    suite.put_table(page, "bench", [measurement], ["a machine."])
    before, *_, row, end, after = page.read_text(encoding="utf-8").splitlines()
    assert (before, end, after) == ("before", "<!-- bench ends -->", "after")
    assert row == "| packing, s |  | 1.5 |  | 1.5 (1-2) | <= 10 | met |"
    suite.save(file, [measurement], machine={"cores": "2"})
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["machine"] == {"cores": "2"}
    assert found["measurements"][0]["ours"] == [1.5, 1.0, 2.0]
    assert (found["measurements"][0]["ratio"], found["measurements"][0]["met"]) == (1.5, True)


def test_a_page_without_the_marks_is_left_as_it_is(suite: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match=r"page\.md: put the lines <!-- bench begins -->"):
        suite.put_table(page, "bench", [], [])
    assert page.read_text(encoding="utf-8") == "nothing"


def test_a_measure_that_fails_is_named_and_the_others_go_on(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(rounds: int) -> list[object]:
        raise SystemExit("TRL is not installed")

    found = [suite.Measurement("packing", "s", [1.0])]
    monkeypatch.setattr(suite, "MEASURES", {"first": fails, "second": lambda rounds: found})
    done = suite.perform(["first", "second"], 5)
    assert done.errors == {"first": "SystemExit: TRL is not installed"}
    assert done.measurements == found
    assert set(done.seconds) == {"first", "second"}


@pytest.mark.parametrize(
    ("name", "file"),
    [("bench", "cpu"), *((name, name) for name in ("ranked", "answers", "grpo", "groups", "rounds", "before"))],
)
def test_the_page_of_the_docs_has_the_marks_and_the_file_the_rounds_of_its_table(name: str, file: str) -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert f"<!-- {name} begins -->" in page
    results = ROOT / "benchmarks" / "results" / f"{file}.json"
    if not results.exists():
        pytest.skip(f"{results.name} was not measured yet")
    kept = json.loads(results.read_text(encoding="utf-8"))
    table = page.partition(f"<!-- {name} begins -->")[2].partition(f"<!-- {name} ends -->")[0]
    assert kept["measurements"]
    for measurement in kept["measurements"]:
        assert f"| {measurement['what']}, {measurement['unit']} |" in table
