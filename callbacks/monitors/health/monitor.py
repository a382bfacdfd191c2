"""The callback that shows a run to its detectors and reports what they find."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lion_lightning.callbacks.folders import require_writable_root, writes_files
from lion_lightning.callbacks.monitors.health.detector import Detector, Step
from lion_lightning.callbacks.monitors.health.findings import Finding, read_findings, write_findings
from lion_lightning.callbacks.monitors.health.hacking import RewardHacking
from lion_lightning.callbacks.monitors.health.pairs import DegeneratePairs
from lion_lightning.callbacks.monitors.health.rounds import EntropyCollapse, LengthDrift, Repetition, Ties
from lion_lightning.callbacks.monitors.health.steps import LengthBias, LikelihoodDisplacement, LossSpike, NonFinite
from lion_lightning.callbacks.monitors.health.views import pairs_of, places, sampled_of
from lion_lightning.one_lightning import LionCallback

logger = logging.getLogger(__name__)

DETECTORS: tuple[type[Detector], ...] = (
    NonFinite,
    LossSpike,
    LikelihoodDisplacement,
    LengthBias,
    DegeneratePairs,
    Ties,
    LengthDrift,
    Repetition,
    EntropyCollapse,
    RewardHacking,
)
"""Detectors by default."""

WORSE = 2.0
"""A symptom is reported again where it is so many times as bad as before."""


class HealthMonitor(LionCallback):
    """Says when a run goes wrong: one line a finding, with the step, the number, the rows and what to do.

    A finding is logged as a warning by rank 0 and written to ``health.jsonl`` under ``default_root_dir`` (not under
    ``fast_dev_run``), where :func:`~lion_lightning.callbacks.monitors.health.read_findings` reads it. The file is empty
    while nothing was found. Each symptom is reported once, and again only if it is twice as bad.

    Detectors see what is there anyway: the metrics that the module logs, the pairs of the data module, the rounds of
    :class:`~lion_lightning.callbacks.OnPolicySampling`. Metrics are kept on the device until a step is logged
    (``trainer.log_every_n_steps``), so that nothing waits for it more often than without this callback; a finding
    names the step that it was seen in. Nothing is computed by the model, and ranks do not wait for each other.

    Works with any module, as far as it logs what a detector reads: the loss is always seen.

    Args:
        detectors: Detectors of symptoms; None for all that there are, an empty list for none.

    Raises:
        ValueError: Two detectors are of one class.
        MisconfigurationException: Before training, if the file cannot be written.
    """

    filename = "health.jsonl"

    def __init__(self, detectors: list[Detector] | None = None) -> None:
        self.detectors = [detector() for detector in DETECTORS] if detectors is None else list(detectors)
        names = [type(detector).__name__ for detector in self.detectors]
        if len(set(names)) < len(names):
            raise ValueError(f"HealthMonitor.detectors has two of one class ({', '.join(names)}); give one of each")
        self.findings: list[Finding] = []
        self._trainer: Trainer | None = None  # while it trains
        self._reported: dict[str, float] = {}  # severity, by symptom
        self._round: int | None = None  # the last that was shown
        self._unread: list[_Unread] = []
        self._samples: list[int] = []  # of the optimizer step that is being made
        self._loss: Tensor | None = None  # of its last micro-batch
        self._global_step = 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        require_writable_root(trainer)
        self._trainer, self.findings, self._reported, self._round = trainer, [], {}, None  # of an earlier run
        self._unread, self._samples, self._loss = [], [], None
        for detector in self.detectors:
            detector.memory.clear()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._global_step = trainer.global_step
        path = Path(trainer.default_root_dir) / self.filename
        if not trainer.is_global_zero:
            return
        if writes_files(trainer):
            # A run that was killed may have found more after the checkpoint, and finds it again.
            known = read_findings(path) if path.exists() and trainer.global_step else []
            self.findings = [finding for finding in known if finding.step <= trainer.global_step]
            write_findings(path, self.findings)
        pairs = pairs_of(trainer) if trainer.global_step == 0 and self.detectors else None
        if pairs is not None:
            self._show(lambda detector: detector.on_pairs(pairs))

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        finished = getattr(trainer.datamodule, "current_round", None)  # type: ignore[attr-defined]
        if finished is None or finished.number == self._round or not trainer.is_global_zero or not self.detectors:
            return
        self._round = finished.number
        sampled = sampled_of(finished, trainer.global_step)
        if sampled is not None:
            self._show(lambda detector: detector.on_round(sampled))

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
        # Lightning asks for the metrics at each batch's end, too, and waits for those of the progress bar.
        metrics = logged_metrics(trainer, "train")
        if "loss" not in metrics and self._loss is not None:
            metrics["loss"] = self._loss
        self._unread.append(_Unread(trainer.global_step, metrics, tuple(self._samples)))
        self._global_step, self._samples, self._loss = trainer.global_step, [], None
        if trainer._logger_connector.should_update_logs:
            self._read()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = logged_metrics(trainer, "val")  # on all ranks: they may have to be summed
        if self._trainer is None or not trainer.is_global_zero:
            return
        self._read()
        numbers = {name: float(value) for name, value in metrics.items()}
        self._show(lambda detector: detector.on_validation(trainer.global_step, numbers))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, RuntimeError):  # the device may be lost
            return
        if self._loss is not None and not self._loss.isfinite().all():  # of the step that was not made
            metrics = {"loss": self._loss.mean()}
            self._unread.append(_Unread(trainer.global_step + 1, metrics, tuple(self._samples)))
        self._read()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = None

    @override
    def state_dict(self) -> dict[str, Any]:
        self._read()
        memories = {type(detector).__name__: detector.memory for detector in self.detectors}
        return {"reported": dict(self._reported), "round": self._round, "memories": memories}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        try:
            self._reported = {str(name): float(severity) for name, severity in state_dict["reported"].items()}
            self._round = state_dict["round"]
            for detector in self.detectors:  # one that is new in the config begins here
                known = state_dict["memories"].get(type(detector).__name__, {})
                detector.memory = {str(name): [float(number) for number in kept] for name, kept in known.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"the checkpoint's state of HealthMonitor is odd ({error!r}); take another one") from error

    def report(self, trainer: Trainer, finding: Finding) -> None:
        """Log a finding and write it to the file, unless one nearly as bad was reported before."""
        if finding.severity < WORSE * self._reported.get(finding.symptom, 0.0):
            return
        self._reported[finding.symptom] = finding.severity
        self.findings.append(finding)
        logger.warning("%s", finding.line)
        if writes_files(trainer):
            write_findings(Path(trainer.default_root_dir) / self.filename, self.findings)

    def _read(self) -> None:
        """Show the detectors the steps since the last call: the one place that waits for the device."""
        trainer, unread, self._unread = self._trainer, self._unread, []
        if trainer is None or not unread or not trainer.is_global_zero or not self.detectors:
            return
        flat = [value.float().to(trainer.strategy.root_device) for step in unread for value in step.metrics.values()]
        numbers = iter(torch.stack(flat).tolist())
        is_scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        has_length_filter = hasattr(trainer.datamodule, "max_length_ratio")  # type: ignore[attr-defined]
        for step in unread:
            metrics = dict(zip(step.metrics, numbers, strict=False))
            seen = Step(step.number, metrics, is_scaled, has_length_filter)
            self._show(lambda detector, seen=seen: detector.on_step(seen), step.samples)  # type: ignore[misc]

    def _show(self, see: Callable[[Detector], Finding | None], samples: tuple[int, ...] = ()) -> None:
        """Show something to each detector; ``samples`` are those that it is about."""
        trainer = self._trainer
        assert trainer is not None
        for detector in self.detectors:
            if finding := see(detector):
                rows = places(trainer, samples) if detector.names_rows else finding.rows
                self.report(trainer, finding._replace(rows=rows))


class _Unread(NamedTuple):
    """Metrics of an optimizer step as they lie on the device, and numbers of the samples that this rank trained on."""

    number: int
    metrics: Mapping[str, Tensor]
    samples: tuple[int, ...]


OTHERS = {"train": ("val", "test", "on_policy/", "perf/"), "val": ("train", "test", "on_policy/", "perf/")}
"""How metrics begin that are not of a stage; whatever else there is may be."""


def logged_metrics(trainer: Trainer, stage: str) -> dict[str, Tensor]:
    """Scalars that were logged in a stage, ``train`` or ``val``, without its name before theirs."""
    metrics = {}
    for name, value in trainer.callback_metrics.items():
        if not name.startswith(OTHERS[stage]) and value.numel() == 1:
            metrics[name.removeprefix(f"{stage}/").removeprefix(f"{stage}_")] = value.detach().reshape(())
    return metrics
