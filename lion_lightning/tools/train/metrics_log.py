"""A CSV logger with atomic rewrites."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from typing_extensions import override

from lion_lightning.cache import atomic_write


class AtomicCSVLogger(CSVLogger):
    """Lightning's ``CSVLogger``, with an atomic rewrite of ``metrics.csv`` when a column is added.

    The original rewrites the file in place. A kill would leave it empty, and a resumed run does not log earlier steps
    again.
    """

    @property
    @rank_zero_experiment
    @override
    def experiment(self) -> Any:
        if self._experiment is None:
            Path(self.root_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _Writer(log_dir=self.log_dir)
        return self._experiment


class LogShortRuns(Callback):
    """Lowers ``trainer.log_every_n_steps`` to a twentieth of the steps, so that a short run logs its losses too."""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        if math.isfinite(steps):
            settings: Any = trainer
            settings.log_every_n_steps = min(settings.log_every_n_steps, max(1, int(steps) // 20))


class _Writer(ExperimentWriter):
    @override
    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Add columns (called by Lightning 2.6 in ``save``)."""
        path = Path(self.metrics_file_path)
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)
