"""Files that Lightning 2.6 still writes under ``fast_dev_run``."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


def suspend_last(trainer: Trainer) -> dict[ModelCheckpoint, Any]:
    """Keep a ``fast_dev_run`` from saving ``last.ckpt`` when it ends, which a real run would be resumed from.

    Returns:
        ``save_last`` of each callback, for :func:`restore_last`: a later run may have the same callbacks.
    """
    saving = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    found = {one: one.save_last for one in saving} if trainer.fast_dev_run else {}  # type: ignore[attr-defined]
    for callback in found:
        callback.save_last = None
    return found


def restore_last(suspended: dict[ModelCheckpoint, Any]) -> None:
    """Set ``save_last`` as it was."""
    for callback, save_last in suspended.items():
        callback.save_last = save_last
