"""Callbacks of the command line: stop signals between training steps, and a lock on the run's folder."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lion_lightning.processes.folder_lock import FolderLock
from lion_lightning.processes.stopping import STOP


class StopBetweenSteps(Callback):
    """Delays stop signals to the end of the training step; at any other time they stop the run at once.

    Lightning checks its flag for SIGTERM after each batch, so no checkpoint is saved within a step.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        STOP.raise_if_swallowed()
        # In place of Lightning 2.6's handler of SIGTERM, which broadcasts within the signal handler: a rank within
        # another collective would hang or receive wrong values.
        trainer._signal_connector._sigterm_notifier_fn = partial(_note, trainer)  # type: ignore[method-assign]

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        STOP.raise_if_swallowed()
        STOP.in_step = True

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        STOP.in_step = False  # a signal may interrupt validation, which may take long and trains nothing

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The rest of the previous batch follows: its schedule and counters.
        STOP.in_step = trainer.training and not trainer.sanity_checking

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        STOP.in_step = False  # the epoch's last step is complete

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        STOP.raise_if_swallowed()  # before the run counts as done

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        STOP.in_step = False
        # The ranks that this process started would not notice.
        launcher = trainer.strategy.launcher
        if STOP.signum is not None and launcher is not None:
            launcher.kill(signal.SIGTERM)
        STOP.told_by_parent = _started_by_rank_0(trainer)


def _started_by_rank_0(trainer: Trainer) -> bool:
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return trainer.local_rank > 0 and isinstance(environment, LightningEnvironment)


def _note(trainer: Trainer, signum: int, frame: FrameType | None) -> None:
    connector, launcher = trainer._signal_connector, trainer.strategy.launcher
    if not connector.received_sigterm and launcher is not None:
        launcher.kill(signal.SIGTERM)
    if not connector.received_sigterm and _started_by_rank_0(trainer):
        os.kill(os.getppid(), signal.SIGTERM)  # a rank that stops alone would fail all others
    connector.received_sigterm = True


class LockRootDir(Callback):
    """Locks the trainer's ``default_root_dir`` during ``fit``.

    Raises:
        MisconfigurationException: Another process holds the lock.
    """

    def __init__(self) -> None:
        self._lock: FolderLock | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        reason = None
        if trainer.is_global_zero:
            self._lock = FolderLock(Path(trainer.default_root_dir), "`lion fit`", "trainer.default_root_dir")
            try:
                self._lock.acquire()
            except ValueError as error:
                reason = str(error)
        reason = trainer.strategy.broadcast(reason)  # all ranks raise, not one alone
        if reason is not None:
            raise MisconfigurationException(reason)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._lock is not None:
            self._lock.release()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")  # Lightning does not call it after an exception
