"""Tables of metrics, and the end of a log."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import NamedTuple

from lion_lightning.printing import printable
from lion_lightning.tools.report.files.shapes import FIX, LARGEST

Curve = dict[int, float]
"""Values by optimizer step."""

TAIL = 4_096
"""Bytes of the end of a log that are read."""

LONGEST = 400
"""Characters of a log's last line that are shown."""


class Metrics(NamedTuple):
    """Logged metrics of a stage.

    Attributes:
        curves: By log key, without values that are NaN.
        steps: Optimizer steps up to the last that was logged, whatever its values are.
        epochs: Epochs that were begun by then.
        nan_since: The first of the steps at the end whose values are all NaN, by log key; empty without any.
    """

    curves: dict[str, Curve]
    steps: int
    epochs: int
    nan_since: dict[str, int]


def metric_files(folder: Path) -> list[Path]:
    """Tables of metrics, by the number of Lightning's version folder."""
    versions = {}
    for path in (*folder.glob("metrics.csv"), *folder.glob("lightning_logs/*/metrics.csv")):
        number = path.parent.name.rpartition("_")[2]
        versions[path] = (int(number) if number.isdigit() else -1, path.stat().st_mtime)
    return sorted(versions, key=lambda path: versions[path])


def read_metrics(folder: Path) -> Metrics:
    """Metrics of all versions: where a resumed run logged a step again, the later value holds."""
    values: dict[str, Curve] = {}
    steps = epochs = 0
    for path in metric_files(folder):
        try:
            for row in _rows(path):
                step, epoch = int(row.pop("step", 0)), row.pop("epoch", -1)
                if row:  # something was logged
                    steps, epochs = max(steps, step + 1), max(epochs, int(epoch) + 1)
                for key, value in row.items():
                    values.setdefault(key, {})[step] = value
        except (ValueError, TypeError, OverflowError, csv.Error) as error:
            raise ValueError(f"{path}: damaged, or not metrics ({error}); {FIX}") from error
    ordered = {key: dict(sorted(curve.items())) for key, curve in values.items()}
    # NaN: a step without any answer of the kind that the metric is of, or a loss that diverged
    known = {key: {step: one for step, one in curve.items() if not math.isnan(one)} for key, curve in ordered.items()}
    nan_since = {}
    for key, curve in ordered.items():
        last = max(known[key], default=-1)
        if late := [step for step in curve if step > last]:
            nan_since[key] = late[0]
    return Metrics({key: curve for key, curve in known.items() if curve}, steps, epochs, nan_since)


def _rows(path: Path) -> list[dict[str, float]]:
    """Rows of a table of metrics, each with the numbers that it has."""
    with path.open(newline="", encoding="utf-8") as file:
        # A kill may leave half a row, which is logged again later.
        complete = [line for line in file if line.endswith("\n")]
    rows = []
    for row in csv.DictReader(complete):
        numbers = {key: float(value) for key, value in row.items() if value}
        rows.append({key: value if abs(value) <= LARGEST else value * math.inf for key, value in numbers.items()})
    return rows


def read_last_line(log: Path) -> str:
    """The last line of a log, which is where an error is; empty if there is none."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = re.split(r"[\r\n]+", file.read().decode("utf-8", "replace").strip())
    last = printable(re.sub(r"\|[ \u2588-\u258f]*\|", "|", lines[-1].removeprefix("lion: error: ")))  # no bar of tqdm
    return last if len(last) <= LONGEST else f"{last[:LONGEST]}…"
