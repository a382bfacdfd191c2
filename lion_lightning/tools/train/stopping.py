"""What a fit of the command line does when it is told to stop, and what it keeps others from doing meanwhile."""

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
    """Lets a signal wait for the end of the step that it comes in; at any other moment it stops the fit at once.

    Lightning looks at its own mark of SIGTERM when a batch is over. What is saved in an exception's handler is then
    never half a step.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the signal known to the trainer's other processes, too."""
        STOP.raise_if_swallowed()
        note_sigterm_without_collectives(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A step begins."""
        STOP.raise_if_swallowed()
        STOP.in_step = True

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation may take long, and trains nothing."""
        STOP.in_step = False

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What follows still belongs to the batch before: its schedule and its counters."""
        STOP.in_step = trainer.training and not trainer.sanity_checking

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch's last step is over."""
        STOP.in_step = False

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What follows takes the run for done."""
        STOP.raise_if_swallowed()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the ranks that this process has started."""
        STOP.in_step = False
        launcher = trainer.strategy.launcher
        if STOP.signum is not None and launcher is not None:
            launcher.kill(signal.SIGTERM)
        STOP.told_by_parent = _started_by_rank_0(trainer)


def _started_by_rank_0(trainer: Trainer) -> bool:
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return trainer.local_rank > 0 and isinstance(environment, LightningEnvironment)


def note_sigterm_without_collectives(trainer: Trainer) -> None:
    """Replace Lightning 2.6's note of a SIGTERM, which broadcasts from within the signal's handler.

    A rank in the middle of another collective would wait for ever, or take one's numbers for the other's.

    Args:
        trainer: Before it registers its handlers.
    """
    trainer._signal_connector._sigterm_notifier_fn = partial(_note, trainer)  # type: ignore[method-assign]


def _note(trainer: Trainer, signum: int, frame: FrameType | None) -> None:
    connector, launcher = trainer._signal_connector, trainer.strategy.launcher
    if not connector.received_sigterm and launcher is not None:
        launcher.kill(signal.SIGTERM)
    if not connector.received_sigterm and _started_by_rank_0(trainer):
        os.kill(os.getppid(), signal.SIGTERM)  # a rank that stops alone would be an error of all others
    connector.received_sigterm = True


class FolderInUse(Callback):
    """Holds a lock on the trainer's root folder while it trains, so that no other fit writes to the same files.

    Raises:
        MisconfigurationException: Another process trains there.
    """

    def __init__(self) -> None:
        self._lock: FolderLock | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the lock on rank 0; all ranks raise where it is taken."""
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        reason = trainer.strategy.broadcast(self._taken(trainer) if trainer.is_global_zero else None)
        if reason is not None:
            raise MisconfigurationException(reason)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give it back."""
        self._release()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give it back."""
        self._release()

    def _taken(self, trainer: Trainer) -> str | None:
        lock = FolderLock(Path(trainer.default_root_dir), "`lion fit`", "trainer.default_root_dir")
        try:
            lock.acquire()
        except ValueError as error:
            return str(error)
        self._lock = lock
        return None

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
