"""Files of a run that somebody cut or changed: a report is made, or one line names the file, the value and the fix."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lion_lightning.cli import main
from lion_lightning.tools import report
from lion_lightning.tools.report import write_report
from lion_lightning.tools.report.logs import read_stage
from tests.unit.tools.report.runs import STARTUP, curve, evaluate, export, finish, interval, write

FIX = "correct it, or remove it: the report goes without"


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture, which takes a second to draw."""
    monkeypatch.setattr(report, "overview", lambda *_: None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two stages with each file that a report reads as JSON."""
    for name in ("sft", "dpo"):
        folder = tmp_path / name
        parts = {"right": [0.0, 1.0] * 4, "short": [0.5] * 8}
        evaluate(folder, [0.0, 1.0] * 4, ["spell", "sort"] * 4, parts)
        curve(folder, train__loss=[2.0, 1.0])
        write(folder / "startup.json", STARTUP)
        start = {"started": "2026-01-02T03:04:05+00:00", "command": ["x", "fit"], "seed": 0, "precision": "32-true"}
        start |= {"git": {"commit": "abc", "changed": True}, "packages": {"torch": "2"}, "model": {"module": "M"}}
        write(folder / "provenance.json", [start])
        asked = [{"prompt": "p", "before": None, "after": "a"}]
        write(folder / "before_after.json", {"before": {"metrics": {"val/loss": 2.0}}, "answers": asked})
        write(folder / "rounds" / "round-0000.json", {"metrics": {"on_policy/score": 0.5}, "report": {"kept": {}}})
        finding = {"symptom": "ties", "step": 4, "value": None, "limit": 2.0, "seen": "s", "advice": "a"}
        write(folder / "health.jsonl", finding | {"severity": 1.5, "rows": ["f:3"]})
        finish(folder)
    results = tmp_path / "dpo" / "evaluation" / "results.json"
    rewards = {"accuracy": interval([1.0, 0.0]), "margin": interval([0.5]), "pairs": 24, "prompts": 4}
    write(results, json.loads(results.read_text()) | {"rewards": rewards})
    write(tmp_path / "run.json", {"command": ["lion", "run", "x.yaml"], "stages": ["sft", "dpo"]})
    return tmp_path


def changed(content: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """A copy with another value at a place."""
    found: Any = copy.deepcopy([content])
    inner = found
    for key in (0, *place)[:-1]:
        inner = inner[key]
    inner[(0, *place)[-1]] = value
    return found[0]


SHAPES: list[tuple[str, tuple[str | int, ...], Any, str]] = [
    ("run.json", (), [1], "its content is a list, not an object"),
    ("run.json", ("command",), "lion", "command is a text, not a list"),
    ("run.json", ("stages",), None, ""),
    ("sft/done.json", ("seconds",), "x", "seconds is a text, not a number (at most 1e+100)"),
    ("sft/done.json", ("seconds",), [1], "seconds is a list, not a number (at most 1e+100)"),
    (
        "sft/startup.json",
        ("policy", "parameters"),
        "x",
        "policy.parameters is a text, not a whole number of at least 0",
    ),
    ("sft/startup.json", ("data", "row_tokens"), 0, "data.row_tokens is 0, not a whole number of at least 1"),
    ("sft/startup.json", ("data", "full"), "x", "data.full is a text, not a share such as '94.9%'"),
    ("sft/startup.json", ("policy", "class"), None, ""),
    ("sft/startup.json", ("rows",), [1], "rows is a list, not an object"),
    ("sft/startup.json", ("run", "steps"), 1.5, "run.steps is 1.5, not a whole number or 'unlimited'"),
    ("sft/startup.json", ("memory", "total"), 10**400, f"memory.total is {10**39}, not a number (at most 1e+100)"),
    ("sft/provenance.json", (), [], "its content is an empty list, not a list with an entry"),
    ("sft/provenance.json", (0, "command"), 5, "[0].command is 5, not a list"),
    ("sft/provenance.json", (0, "packages"), "x", "[0].packages is a text, not an object"),
    ("sft/provenance.json", (0, "started"), None, ""),
    ("sft/before_after.json", ("answers", 0, "prompt"), {}, "answers[0].prompt is an object, not a text"),
    ("sft/before_after.json", ("before", "metrics", "val/loss"), math.nan, ""),
    ("sft/rounds/round-0000.json", ("metrics",), [1], "metrics is a list, not an object"),
    ("sft/rounds/round-0000.json", ("metrics", "on_policy/score"), None, ""),
    ("sft/evaluation/results.json", ("accuracy",), "x", "accuracy is a text, not an object"),
    ("sft/evaluation/results.json", ("accuracy", "low"), None, "accuracy.low is missing"),
    ("sft/evaluation/results.json", ("accuracy", "by", "spell"), {}, "accuracy.by.spell.estimate is missing"),
    ("sft/evaluation/results.json", ("accuracy", "high"), 1e308, "accuracy.high is 1e+308, not a number (at most 1"),
    ("dpo/evaluation/results.json", ("rewards", "pairs"), "x", "rewards.pairs is a text, not a whole number"),
]


@pytest.mark.parametrize(("name", "place", "value", "line"), SHAPES)
def test_a_value_of_another_shape_is_one_line_and_an_unknown_one_no_fault(
    name: str, place: tuple[str | int, ...], value: Any, line: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / name
    write(path, changed(json.loads(path.read_text()), place, value))
    assert main(["report", str(run)]) == (2 if line else 0)
    fix = "correct it: without it `lion run` trains this stage again" if "done" in name else FIX
    told = capsys.readouterr().err
    assert told.startswith(f"lion: error: {path}: {line}" if line else "")
    assert told.endswith(f"; {fix}\n" if line else "")
    assert told.count("\n") == bool(line)


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("evaluation/scored.jsonl", '{"question": "q", "answer": "a", "score": 1}\n{"ques', ":2: damaged, or not an a"),
        ("evaluation/scored.jsonl", '{"question": "q", "answer": "a"}\n', f":1: score is missing; {FIX}"),
        ("evaluation/scored.jsonl", '{"question": "q", "answer": "a", "score": NaN}\n', f":1: score is missing; {FIX}"),
        ("evaluation/scored.jsonl", "[1]\n", f":1: its content is a list, not an object; {FIX}"),
        ("evaluate.yaml", "by: [family]\n", f": by is a list, not a text; {FIX}"),
        ("evaluate.yaml", "", f": the file is empty; a config is a mapping of keys to values; {FIX}"),
        ("done.json", '{"seconds": 1', ": damaged, or not what a run wrote (Expecting ',' delimiter: line 1 column 14"),
        ("health.jsonl", "[1]\n", ":1: not a finding of HealthMonitor; remove the file"),
        ("health.jsonl", '{"value": 1, "limit": Infinity, "severity": 1' + "0" * 400 + "}", ":1: not a finding of Hea"),
        ("metrics.csv", "step,epoch,train/loss\n1,0,x\n", ": damaged, or not metrics (could not convert string to"),
        ("export/lion_export.json", "{}", ": not the list of an export's files; export it again"),
    ],
)
def test_a_damaged_file_is_one_line(
    name: str, text: str, line: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(run / "sft")
    (run / "sft" / name).write_text(text)
    assert main(["report", str(run)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"lion: error: {run / 'sft' / name}{line}")
    assert told.count("\n") == 1


@pytest.mark.parametrize("section", ["model", "data", "trainer"])
def test_a_config_of_another_shape_is_not_described(section: str, run: Path) -> None:
    for value in ("[1]", "x", "{init_args: 3}", "{init_args: {policy: {path: [1]}}}", "-1"):
        (run / "sft" / "stage.yaml").write_text(f"{section}: {value}\n")
        write_report(run)


def test_a_metric_beyond_all_bounds_is_drawn_without(run: Path) -> None:
    rows = "1,1e308,inf\n2,-1e308,1\n3,1.5,1\n4,2.5,0.5\n"
    (run / "sft" / "metrics.csv").write_text(f"step,train/loss,perf/packing_efficiency\n{rows}")
    assert list(read_stage(run / "sft").curves["train/loss"].values())[:2] == [math.inf, -math.inf]
    write_report(run)


def test_checkpoints_are_looked_for_once_for_each_stage(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, glob = [], Path.glob

    def counted(self: Path, pattern: str) -> Any:
        looked.append((self.name, pattern))
        return glob(self, pattern)

    monkeypatch.setattr(Path, "glob", counted)
    write_report(run)
    assert sorted(name for name, pattern in looked if "ckpt" in pattern) == ["dpo", "sft"]


def places(content: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Place of each value in a file's content, itself among them."""
    yield place
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield from places(value, (*place, key))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "value", [None, "x", [1], {"a": 1}, -1, math.nan, True, [], {}, 0, 1e308, pytest.param(10**400, id="huge"), [[]]]
)
def test_any_value_anywhere_is_a_report_or_one_line(value: Any, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in [*run.rglob("*.json"), run / "sft" / "health.jsonl"]:
        text = path.read_text()
        for place in places(json.loads(text)):
            write(path, changed(json.loads(text), place, value))
            assert main(["report", str(run)]) in (0, 2)
            told = capsys.readouterr().err
            assert not told or (str(path) in told and told.count("\n") == 1 and "; " in told), (path, place, told)
        path.write_text(text)
