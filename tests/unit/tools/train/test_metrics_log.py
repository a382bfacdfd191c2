"""metrics.csv when its columns grow, and when a kill comes in between."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from lion_lightning.tools.train.metrics_log import AtomicCSVLogger, LogShortRuns


def logged(logger: CSVLogger, *rows: tuple[int, dict[str, Any]]) -> Path:
    for step, row in rows:
        logger.log_metrics(row, step)
        logger.save()
    return Path(logger.log_dir) / "metrics.csv"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_new_columns_give_the_same_table_as_lightnings(tmp_path: Path) -> None:
    rows = [(0, {"a": 1.5}), (1, {"a": 2.5, "b": 0.1}), (2, {"c": 3.0}), (3, {"a": 1.0})]
    mine = logged(AtomicCSVLogger(tmp_path / "mine"), *rows)
    assert table(mine) == table(logged(CSVLogger(tmp_path / "lightning"), *rows))
    assert [path.name for path in mine.parent.iterdir()] == ["metrics.csv"]


def test_killed_while_a_column_is_added_no_row_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This is what Lightning 2.6 calls for a new column; were it another method, the table above would differ."""
    logger = AtomicCSVLogger(tmp_path)
    path = logged(logger, (0, {"a": 1.5}), (1, {"a": 2.5}))
    before = path.read_text()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        logged(logger, (2, {"b": 1.0}))
    assert path.read_text() == before


@pytest.mark.parametrize(("steps", "every"), [(4, 1), (60, 3), (10_000, 50), (math.inf, 50)])
def test_a_short_run_logs_its_losses(steps: float, every: int) -> None:
    trainer: Any = SimpleNamespace(estimated_stepping_batches=steps, log_every_n_steps=50)
    LogShortRuns().on_train_start(trainer, BoringModel())
    assert trainer.log_every_n_steps == every
