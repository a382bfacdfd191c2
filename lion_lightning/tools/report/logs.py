"""Read the logs of a run: metrics, rounds, evaluations, answers and provenance of each stage."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from lion_lightning.cache import read_json, read_object

Curve = dict[int, float]
"""Values by optimizer step."""


_FIX = "remove it, the report goes without"

SAMPLES = 24
"""Prompts whose answers are shown side by side: the first of the evaluation's, so that stages show the same ones."""


class AnswerSample(NamedTuple):
    """An answer that was judged.

    Attributes:
        text: The answer.
        score: Score of the judge.
    """

    text: str
    score: float


class Stage(NamedTuple):
    """One stage of one seed.

    Attributes:
        name: Its folder's name, e.g. ``dpo``.
        folder: The stage's folder.
        curves: Logged metrics, by log key.
        before: Validation metrics before the first step, by log key, as ``BeforeAfter`` keeps them; empty without it.
        rounds: Summary of each round of on-policy sampling.
        evaluation: Results of ``lion evaluate``; empty if there are none.
        samples: Answers to some of the evaluation's prompts, by question.
        provenance: The last start's entry of ``provenance.json``; empty if there is none.
        seconds: Wall time of the stage, its evaluation included; None if it is not known.
    """

    name: str
    folder: Path
    curves: dict[str, Curve]
    before: dict[str, float]
    rounds: list[dict[str, Any]]
    evaluation: dict[str, Any]
    samples: dict[str, AnswerSample]
    provenance: dict[str, Any]
    seconds: float | None


class ChainLogs(NamedTuple):
    """The stages of one seed, in order.

    Attributes:
        name: ``seed-0``, or the run's own name where there is but one.
        stages: The stages.
    """

    name: str
    stages: list[Stage]


def read_run(folder: Path) -> list[ChainLogs]:
    """Read a folder of ``lion run``, of a single stage, or one that holds stages.

    Args:
        folder: Where to look.

    Raises:
        ValueError: If nothing was logged there.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give that of a run, e.g. runs/pipeline")
    numbered = [path for path in folder.glob("seed-*") if path.name.partition("-")[2].isdecimal()]
    seeds = sorted(numbered, key=lambda path: int(path.name.partition("-")[2]))
    chains = [ChainLogs(path.name, _stages(path)) for path in seeds] or [ChainLogs(folder.name, _stages(folder))]
    found = [chain for chain in chains if chain.stages]
    if not found:
        raise ValueError(
            f"{folder}: no stage has logged anything there (no metrics.csv); train first, or name its folder"
        )
    return found


def _stages(folder: Path) -> list[Stage]:
    """The folder itself if a trainer logged there; else those within it, in the order in which they were begun."""
    if _traces(folder):
        return [read_stage(folder)]
    stages = [path for path in folder.iterdir() if path.is_dir() and _traces(path)]
    return [read_stage(path) for path in sorted(stages, key=_begun)]


def _begun(folder: Path) -> float:
    return min(path.stat().st_mtime for path in (folder / "stage.yaml", *_traces(folder)) if path.exists())


def _traces(folder: Path) -> list[Path]:
    """Files that only a stage has: logs, or ``done.json`` where a short one ended before it logged anything."""
    return [*_logs(folder), *folder.glob("done.json")]


def read_stage(folder: Path) -> Stage:
    """Read the logs under a trainer's ``default_root_dir``.

    Args:
        folder: That folder.
    """
    return Stage(
        name=folder.name,
        folder=folder,
        curves=_curves(folder),
        before=_before(folder / "before_after.json"),
        rounds=[_object(path) for path in sorted(folder.glob("rounds/round-*.json"))],
        evaluation=_object(folder / "evaluation" / "results.json"),
        samples=_samples(folder / "evaluation" / "scored.jsonl"),
        provenance=_last_start(folder / "provenance.json"),
        seconds=_object(folder / "done.json").get("seconds"),
    )


def _logs(folder: Path) -> list[Path]:
    return sorted({*folder.glob("metrics.csv"), *folder.glob("lightning_logs/*/metrics.csv")}, key=_version)


def _version(path: Path) -> tuple[int, float]:
    number = path.parent.name.rpartition("_")[2]
    return (int(number) if number.isdigit() else -1, path.stat().st_mtime)


def _curves(folder: Path) -> dict[str, Curve]:
    """Metrics of all versions: where a resumed run logged a step again, the later value holds."""
    curves: dict[str, Curve] = {}
    for path in _logs(folder):
        try:
            with path.open(newline="", encoding="utf-8") as file:
                # A kill may leave half a row, which is logged again later.
                complete = [line for line in file if line.endswith("\n")]
            for row in csv.DictReader(complete):
                for key, step, value in _values(row):
                    curves.setdefault(key, {})[step] = value
        except (ValueError, TypeError, csv.Error) as error:
            raise ValueError(f"{path}: damaged, or not metrics ({error}); {_FIX}") from error
    return {key: dict(sorted(curve.items())) for key, curve in curves.items()}


def _values(row: dict[str, str]) -> Iterator[tuple[str, int, float]]:
    step = int(float(row.get("step") or 0))
    for key, value in row.items():
        if value and key not in ("step", "epoch"):
            yield key, step, float(value)


def _before(path: Path) -> dict[str, float]:
    """Lightning logs nothing of the sanity check, so that the first value in the logs is one after training."""
    metrics = _object(path).get("before", {}).get("metrics", {})
    return {str(key): float(value) for key, value in metrics.items()}


def _object(path: Path) -> dict[str, Any]:
    return read_object(path, "what a run wrote", _FIX) if path.exists() else {}


def _last_start(path: Path) -> dict[str, Any]:
    starts = read_json(path, "what a run wrote", _FIX) if path.exists() else [{}]
    if not isinstance(starts, list) or not starts or not isinstance(starts[-1], dict):
        raise ValueError(f"{path}: not a list of starts; {_FIX}")
    return starts[-1]


def _samples(path: Path) -> dict[str, AnswerSample]:
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in islice(file, SAMPLES)]
        return {str(row["question"]): AnswerSample(str(row["answer"]), float(row["score"])) for row in rows}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, or not answers with scores; {_FIX}") from error
