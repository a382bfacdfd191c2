"""The callback that shows a run to its detectors and reports what they find."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lion_lightning.callbacks.folders import require_writable_root, writes_files
from lion_lightning.callbacks.monitors.health.detector import Detector, Step
from lion_lightning.callbacks.monitors.health.findings import Finding, read_findings, write_findings
from lion_lightning.callbacks.monitors.health.steps import LikelihoodDisplacement, NonFinite

logger = logging.getLogger(__name__)

MOST_ROWS = 3
"""Rows that a finding names."""

WORSE = 2.0
"""A symptom is reported again where it is so many times as bad as before."""


class HealthMonitor(Callback):
    """Says when a run goes wrong: one line a finding, with the step, the number, the rows and what to do.

    A finding is logged as a warning by rank 0 and written to ``health.jsonl`` under ``default_root_dir`` (not under
    ``fast_dev_run``), where :func:`~lion_lightning.callbacks.monitors.health.read_findings` reads it. The file is empty
    while nothing was found. Each symptom is reported once, and again only if it is twice as bad.

    Detectors see the metrics that the module logs anyway. These are kept on the device until a step is logged
    (``trainer.log_every_n_steps``), so that nothing waits for it more often than without this callback; a finding
    names the step that it was seen in. Nothing is computed by the model.

    Works with any module, as far as it logs what a detector reads: the loss and its gradients are always seen.

    Args:
        detectors: What is looked for; None for all that there are, an empty list for nothing.

    Raises:
        ValueError: Two detectors are of one class.
        MisconfigurationException: Before training, if the file cannot be written.
    """

    filename = "health.jsonl"

    def __init__(self, detectors: list[Detector] | None = None) -> None:
        self.detectors = default_detectors() if detectors is None else list(detectors)
        names = [type(detector).__name__ for detector in self.detectors]
        if len(set(names)) < len(names):
            raise ValueError(f"HealthMonitor.detectors has two of one class ({', '.join(names)}); give one of each")
        self.findings: list[Finding] = []
        self._trainer: Trainer | None = None  # while it trains
        self._reported: dict[str, float] = {}  # severity, by symptom
        self._unread: list[_Unread] = []
        self._samples: list[int] = []  # of the optimizer step that is being made
        self._loss: Tensor | None = None  # of its last micro-batch
        self._global_step = 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            require_writable_root(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer, self._global_step = trainer, trainer.global_step
        self._unread, self._samples, self._loss = [], [], None
        if trainer.global_step == 0:  # another run than the one that this object may have seen
            self.findings, self._reported = [], {}
            for detector in self.detectors:
                detector.memory.clear()
        path = self._path(trainer)
        if not writes_files(trainer) or not trainer.is_global_zero:
            return
        # A run that was killed may have found more after the checkpoint, and finds it again.
        known = read_findings(path) if path.exists() and trainer.global_step else []
        self.findings = [finding for finding in known if finding.step <= trainer.global_step]
        write_findings(path, self.findings)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._samples += getattr(batch, "sample_indices", ())

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._global_step:
            return
        metrics = training_metrics(trainer.callback_metrics)  # Lightning asks for them at each batch's end, too
        if "loss" not in metrics and self._loss is not None:
            metrics["loss"] = self._loss
        self._unread.append(_Unread(trainer.global_step, metrics, tuple(self._samples)))
        self._global_step, self._samples, self._loss = trainer.global_step, [], None
        if trainer._logger_connector.should_update_logs:
            self._read()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read()
        self._trainer = None

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._trainer is None or isinstance(exception, RuntimeError):  # the device may be lost
            return
        if self._loss is not None and not self._loss.isfinite().all():  # the step that was not made
            step = trainer.global_step + 1
            self._unread.append(_Unread(step, {"loss": self._loss.mean()}, tuple(self._samples)))
        self._read()
        self._trainer = None

    @override
    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {
            "reported": dict(self._reported),
            "memories": {type(detector).__name__: detector.memory for detector in self.detectors},
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        try:
            self._reported = {str(name): float(severity) for name, severity in state_dict["reported"].items()}
            for detector in self.detectors:  # one that is new in the config begins here
                known = state_dict["memories"].get(type(detector).__name__, {})
                detector.memory = {str(name): [float(number) for number in kept] for name, kept in known.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"the checkpoint's state of HealthMonitor is odd ({error!r}); take another one") from error

    def report(self, trainer: Trainer, finding: Finding) -> None:
        """Log a finding and write it to the file, unless one as bad was reported before."""
        if finding.severity < WORSE * self._reported.get(finding.symptom, 0.0):
            return
        self._reported[finding.symptom] = finding.severity
        self.findings.append(finding)
        logger.warning("%s", finding.line)
        if writes_files(trainer):
            write_findings(self._path(trainer), self.findings)

    def _path(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / self.filename

    def _read(self) -> None:
        """Show the detectors the steps since the last call; the one place that waits for the device."""
        trainer, unread, self._unread = self._trainer, self._unread, []
        if trainer is None or not unread or not trainer.is_global_zero:
            return
        flat = [value.float().to(trainer.strategy.root_device) for step in unread for value in step.metrics.values()]
        numbers = iter(torch.stack(flat).tolist())
        is_scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        for step in unread:
            metrics = dict(zip(step.metrics, numbers, strict=False))
            for detector in self.detectors:
                if finding := detector.on_step(Step(step.number, metrics, is_scaled)):
                    rows = places(trainer, step.samples) if detector.names_rows else ()
                    self.report(trainer, finding._replace(rows=rows))


class _Unread(NamedTuple):
    """Metrics of an optimizer step as they lie on the device, and numbers of the samples that this rank trained on."""

    number: int
    metrics: Mapping[str, Tensor]
    samples: tuple[int, ...]


def training_metrics(logged: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scalars that were logged in training, without ``train/`` or ``train_`` before their names."""
    metrics = {}
    for name, value in logged.items():
        if not name.startswith(("val", "test", "on_policy/", "perf/")) and value.numel() == 1:
            metrics[name.removeprefix("train/").removeprefix("train_")] = value.detach().reshape(())
    return metrics


def places(trainer: Trainer, samples: Iterable[int]) -> tuple[str, ...]:
    """Places of the first of some training samples, by their numbers; none where the data is not ours, or streams."""
    mixture = getattr(trainer.datamodule, "train_mixture", None)  # type: ignore[attr-defined]
    if mixture is None:
        return ()
    found = np.flatnonzero(np.isin(mixture.documents.numbers, list(samples)))
    return tuple(mixture.documents.where(position) for position in found[:MOST_ROWS].tolist())


def default_detectors() -> list[Detector]:
    """One of each."""
    return [NonFinite(), LikelihoodDisplacement()]
