"""Which processes of a Trainer prepare data together."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from lightning.pytorch import Trainer

from lion_lightning.meeting import Meeting


def meet(trainer: Trainer | None, folder: Path) -> Meeting:
    """All ranks where every machine sees one folder, else the ranks of each machine among themselves.

    Args:
        trainer: All of its ranks must call this together; None for a process alone.
        folder: The cache, where they will meet.
    """
    if trainer is None or trainer.world_size == 1:
        return Meeting(folder)
    strategy = trainer.strategy
    attempt: str = strategy.broadcast(uuid4().hex)
    sign = folder / f"meeting-{attempt}"
    if trainer.is_global_zero:
        with suppress(OSError):  # whoever writes there later says what is wrong, and how to mend it
            folder.mkdir(parents=True, exist_ok=True)
            sign.touch()
    strategy.barrier()
    shared = strategy.reduce_boolean_decision(sign.exists(), all=True)
    sign.unlink(missing_ok=True)
    if shared:
        return Meeting(folder, trainer.global_rank, trainer.world_size, attempt)
    return Meeting(folder, trainer.local_rank, trainer.num_devices, attempt)
