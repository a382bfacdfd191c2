"""What callbacks that write files ask first: whether they may, and whether they can."""

from __future__ import annotations

from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from lion_lightning.models.export import obstacle


def writes_files(trainer: Trainer) -> bool:
    """Whether callbacks write files: not under ``fast_dev_run``, whose few batches must not replace a real run's files.

    Args:
        trainer: The trainer.
    """
    return not trainer.fast_dev_run  # type: ignore[attr-defined]


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
