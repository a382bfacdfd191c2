"""Folders of runs as `lion run` leaves them, with metrics, evaluations and answers of one's choice."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

STARTUP = {
    "policy": {"class": "LlamaForCausalLM", "parameters": 801_792},
    "objective": {"loss": "NLLLoss over supervised tokens"},
    "data": {"samples": 5000, "tokens": 9000, "rows": 50, "row_tokens": 200, "full": "90.0%"},
    "rows": {"demo/train": ["3 rows left out: empty"]},
    "run": {"epochs": 2, "steps": 20, "accumulate": 1, "devices": 1, "step_tokens": 400},
    "memory": {"total": 100 * 2**20},
}


def log(folder: Path, rows: Sequence[Mapping[str, float]], version: int = 0) -> None:
    """Write a table of metrics."""
    path = folder / "lightning_logs" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)


def curve(folder: Path, version: int = 0, /, **metrics: Sequence[float]) -> None:
    """Write metrics as curves, with ``__`` for the slashes of their keys: steps 9, 19, 29, ..."""
    rows = []
    for number in range(max(map(len, metrics.values()))):
        given = {name.replace("__", "/"): values[number] for name, values in metrics.items() if number < len(values)}
        rows.append({"step": 10 * number + 9, **given})
    log(folder, rows, version)


def write(path: Path, content: Any) -> None:
    """Write plain data as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def evaluate(
    folder: Path,
    scores: Sequence[float],
    kinds: Sequence[str] = (),
    parts: Mapping[str, Sequence[float]] | None = None,
    answers: Sequence[str] = (),
) -> None:
    """Write an evaluation: answers to ``q0``, ``q1``, ..., with means and intervals that are 0.1 to both sides."""
    rows = []
    for number, score in enumerate(scores):
        row: dict[str, Any] = {"question": f"q{number}", "answer": answers[number] if answers else "a", "score": score}
        row["row"] = {"family": kinds[number]} if kinds else {}
        if parts:
            row["parts"] = {name: values[number] for name, values in parts.items()}
        rows.append(json.dumps(row) + "\n")
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "scored.jsonl").write_text("".join(rows))
    by = {}
    for kind in dict.fromkeys(kinds):
        by[kind] = interval([score for score, other in zip(scores, kinds, strict=True) if other == kind])
    found = {**interval(scores), "by": by, "unfinished": 0.0}
    if parts:
        found["parts"] = {name: interval(values) for name, values in parts.items()}
    write(folder / "evaluation" / "results.json", {"accuracy": found})
    (folder / "evaluate.yaml").write_text(yaml.safe_dump({"by": "family"}))


def interval(scores: Sequence[float]) -> dict[str, float]:
    """A mean and an interval as the evaluation writes them."""
    mean = sum(scores) / len(scores)
    return {"estimate": mean, "low": mean - 0.1, "high": mean + 0.1, "count": len(scores)}


def finish(folder: Path, seconds: float = 60.0) -> None:
    """Mark a stage as done."""
    write(folder / "done.json", {"seconds": seconds})


def export(folder: Path) -> None:
    """Write an export without any weights in it, which is complete by its list of files."""
    write(folder / "export" / "lion_export.json", {"files": {}})
