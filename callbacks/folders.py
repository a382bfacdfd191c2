"""Checks for callbacks that write files: permitted, and possible."""

from __future__ import annotations

import shutil
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from lion_lightning.models.checkpoints.export import obstacle


def writes_files(trainer: Trainer) -> bool:
    """True unless under ``fast_dev_run``, whose few batches must not replace a real run's files.

    Args:
        trainer: The trainer.
    """
    return not trainer.fast_dev_run  # type: ignore[attr-defined]


def scratch_or(trainer: Trainer, folder: Path) -> Path:
    """A folder for files that the run itself needs: under ``fast_dev_run`` another one, next to a real run's.

    Args:
        trainer: The trainer.
        folder: Where a real run has them.
    """
    return folder if writes_files(trainer) else folder.with_name(f"{folder.name}.fast_dev_run")


def remove_scratch(trainer: Trainer, folder: Path) -> None:
    """Take that other folder away, if this is a ``fast_dev_run``.

    Args:
        trainer: The trainer.
        folder: From :func:`scratch_or`.
    """
    if not writes_files(trainer) and trainer.is_global_zero:
        shutil.rmtree(folder, ignore_errors=True)


def require_writable(trainer: Trainer, folder: Path, fix: str) -> None:
    """Make a folder where global rank 0 runs, and see to it that files can be written there.

    Every rank calls this, and all of them raise alike: one that went on alone would wait for the others for ever. Under
    ``fast_dev_run`` nothing is written, so nothing is made.

    Args:
        trainer: The trainer, with its processes set up.
        folder: Folder that rank 0 will write to.
        fix: What to do about it, for the error.

    Raises:
        MisconfigurationException: If it cannot be written.
    """
    if not writes_files(trainer):
        return
    reason = trainer.strategy.broadcast(obstacle(folder) if trainer.is_global_zero else None)
    if reason is not None:
        raise MisconfigurationException(f"cannot write to {folder}: {reason}; {fix}")
