"""Read the logs of a run: metrics, rounds, evaluations, answers and provenance of each stage."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from lion_lightning.cache import read_json, read_object

Curve = dict[int, float]
"""Values by optimizer step."""

_FIX = "remove it, the report goes without"

SAMPLES = 24
"""Prompts whose answers are shown side by side: the first of the evaluation's, so that stages show the same ones."""


class Stage(NamedTuple):
    """One stage of one seed.

    Attributes:
        name: Its folder's name, e.g. ``dpo``.
        folder: The stage's folder.
        curves: Logged metrics, by log key.
        before: Validation metrics before the first step, by log key, as ``BeforeAfter`` keeps them; empty without it.
        rounds: Summary of each round of on-policy sampling.
        evaluation: Results of ``lion evaluate``; empty if there are none.
        samples: Answer and its score for some of the evaluation's prompts, by question.
        provenance: The last start's entry of ``provenance.json``; empty if there is none.
        seconds: Wall time of the stage, its evaluation included; None if it is not known.
    """

    name: str
    folder: Path
    curves: dict[str, Curve]
    before: dict[str, float]
    rounds: list[dict[str, Any]]
    evaluation: dict[str, Any]
    samples: dict[str, tuple[str, float]]
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
    seeds = []
    for path in folder.glob("seed-*"):
        number = path.name.partition("-")[2]
        if number.isdecimal():
            seeds.append((int(number), path))  # 2 is before 10
    chains = [ChainLogs(path.name, _stages(path)) for _, path in sorted(seeds)]
    found = [chain for chain in chains or [ChainLogs(folder.name, _stages(folder))] if chain.stages]
    if not found:
        raise ValueError(
            f"{folder}: no stage has logged anything there (no metrics.csv); train first, or name its folder"
        )
    return found


def all_stages(chains: Sequence[ChainLogs], name: str | None = None) -> list[Stage]:
    """The stages of all chains, or those with a name."""
    found = []
    for chain in chains:
        found += [stage for stage in chain.stages if name in (None, stage.name)]
    return found


def _stages(folder: Path) -> list[Stage]:
    """The folder itself if a trainer logged there; else those within it, in the order in which they were begun."""
    if _traces(folder):
        return [read_stage(folder)]
    begun = {}
    for path in folder.iterdir():
        if path.is_dir() and (traces := _traces(path)):
            begun[path] = min(each.stat().st_mtime for each in (path / "stage.yaml", *traces) if each.exists())
    return [read_stage(path) for path in sorted(begun, key=lambda path: begun[path])]


def _traces(folder: Path) -> list[Path]:
    """Files that only a stage has: logs, or ``done.json`` where a short one ended before it logged anything."""
    return [*_logs(folder), *folder.glob("done.json")]


def read_stage(folder: Path) -> Stage:
    """Read the logs under a trainer's ``default_root_dir``."""
    # Lightning logs nothing of the sanity check: the first value in the logs is one after training.
    before = _object(folder / "before_after.json").get("before", {}).get("metrics", {})
    starts_file = folder / "provenance.json"
    starts = read_json(starts_file, "what a run wrote", _FIX) if starts_file.exists() else [{}]
    if not isinstance(starts, list) or not starts or not isinstance(starts[-1], dict):
        raise ValueError(f"{starts_file}: not a list of starts; {_FIX}")
    return Stage(
        name=folder.name,
        folder=folder,
        curves=_curves(folder),
        before={str(key): float(value) for key, value in before.items()},
        rounds=[_object(path) for path in sorted(folder.glob("rounds/round-*.json"))],
        evaluation=_object(folder / "evaluation" / "results.json"),
        samples=_samples(folder / "evaluation" / "scored.jsonl"),
        provenance=starts[-1],
        seconds=_object(folder / "done.json").get("seconds"),
    )


def _logs(folder: Path) -> list[Path]:
    """Tables of metrics, by the number of Lightning's version folder."""
    versions = {}
    for path in (*folder.glob("metrics.csv"), *folder.glob("lightning_logs/*/metrics.csv")):
        number = path.parent.name.rpartition("_")[2]
        versions[path] = (int(number) if number.isdigit() else -1, path.stat().st_mtime)
    return sorted(versions, key=lambda path: versions[path])


def _curves(folder: Path) -> dict[str, Curve]:
    """Metrics of all versions: where a resumed run logged a step again, the later value holds."""
    curves: dict[str, Curve] = {}
    for path in _logs(folder):
        try:
            with path.open(newline="", encoding="utf-8") as file:
                # A kill may leave half a row, which is logged again later.
                complete = [line for line in file if line.endswith("\n")]
            for row in csv.DictReader(complete):
                step = int(float(row.pop("step", None) or 0))
                for key, value in row.items():
                    # NaN: a step without any answer of the kind that the metric is of
                    if value and key != "epoch" and not math.isnan(number := float(value)):
                        curves.setdefault(key, {})[step] = number
        except (ValueError, TypeError, csv.Error) as error:
            raise ValueError(f"{path}: damaged, or not metrics ({error}); {_FIX}") from error
    return {key: dict(sorted(curve.items())) for key, curve in curves.items()}


def _object(path: Path) -> dict[str, Any]:
    return read_object(path, "what a run wrote", _FIX) if path.exists() else {}


def _samples(path: Path) -> dict[str, tuple[str, float]]:
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8") as file:  # the first ones only: it may be long
            rows = [json.loads(line) for line in islice(file, SAMPLES)]
        return {str(row["question"]): (str(row["answer"]), float(row["score"])) for row in rows}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, or not answers with scores; {_FIX}") from error
