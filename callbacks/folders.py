"""Files that callbacks write: where they may be, and how."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from lion_lightning.cache import atomic_write
from lion_lightning.models.checkpoints.export import obstacle


def writes_files(trainer: Trainer) -> bool:
    """True unless under ``fast_dev_run``, whose few batches must not replace a real run's files."""
    return not trainer.fast_dev_run  # type: ignore[attr-defined]


def remove_scratch(trainer: Trainer, folder: Path) -> None:
    """Remove the folder of files that a ``fast_dev_run`` itself needs, if this is one."""
    if not writes_files(trainer) and trainer.is_global_zero:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(trainer: Trainer, filename: str, content: Any, **options: Any) -> None:
    """Write a file under ``default_root_dir``, but not under ``fast_dev_run``.

    Args:
        trainer: The trainer; only its global rank 0 calls this.
        filename: Name of the file.
        content: Plain data.
        options: Arguments of ``json.dumps``.
    """
    if writes_files(trainer):
        with atomic_write(Path(trainer.default_root_dir) / filename) as temporary:
            temporary.write_text(json.dumps(content, indent=2, **options) + "\n", encoding="utf-8")


def require_writable_root(trainer: Trainer) -> None:
    """:func:`require_writable` for the trainer's ``default_root_dir``."""
    require_writable(trainer, Path(trainer.default_root_dir), "give the trainer another default_root_dir.")


def require_writable(trainer: Trainer, folder: Path, fix: str) -> None:
    """Make a folder where global rank 0 runs, and check that files can be written there.

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
