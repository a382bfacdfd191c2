"""Which processes of a Trainer prepare data together."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch.distributed as dist
from lightning.pytorch import Trainer

from lion_lightning.cache import remove
from lion_lightning.distributed.rendezvous import ALONE, RankLostError, WorkerGroup

_DAY = 24 * 3600.0


@contextmanager
def preparing(trainer: Trainer | None, folder: Path) -> Iterator[WorkerGroup]:
    """The ranks that prepare data together: all where every machine sees one folder, else those of each machine.

    Where one rank fails, all of them raise.

    Args:
        trainer: All of its ranks must call this together; None for a process alone.
        folder: The cache, where they meet.

    Raises:
        RuntimeError: Another rank failed, or was lost.
    """
    if getattr(trainer, "world_size", 1) == 1:
        yield ALONE
        return
    assert trainer is not None
    workers = _meet(trainer, folder)
    mine: Exception | None = None
    try:
        with workers.heartbeat():
            yield workers
    except RankLostError:
        raise  # it will not answer any more
    except Exception as error:
        mine = error
    said = _gather(f"{type(mine).__name__}: {mine}" if mine else None)
    if workers.rank == 0:
        shutil.rmtree(workers.notes, ignore_errors=True)
    if mine is not None:
        raise mine
    for rank, text in enumerate(said):
        if text is not None:
            raise RuntimeError(f"rank {rank} failed: {text}")


def _meet(trainer: Trainer, folder: Path) -> WorkerGroup:
    strategy = trainer.strategy
    attempt: str = strategy.broadcast(uuid4().hex)
    sign = folder / f"sign-{attempt}"
    if trainer.is_global_zero:
        with suppress(OSError):  # whoever writes there later says what is wrong, and how to mend it
            folder.mkdir(parents=True, exist_ok=True)
            _remove_old_notes(folder)
            sign.touch()
    strategy.barrier()
    shared = strategy.reduce_boolean_decision(sign.exists(), all=True)
    if trainer.is_global_zero:
        sign.unlink(missing_ok=True)
    if shared:
        return WorkerGroup(folder, trainer.global_rank, trainer.world_size, attempt)
    return WorkerGroup(folder, trainer.local_rank, trainer.num_devices, attempt)


def _remove_old_notes(folder: Path) -> None:
    """Remove what ranks that were killed have left: nobody has given a sign of life there for a day."""
    for path in [*folder.glob("group-*"), *folder.glob("sign-*")]:
        with suppress(OSError):  # another start may be doing the same
            last = max(part.stat().st_mtime for part in (path, *path.glob("*")))
            if time.time() - last > _DAY:
                remove(path)


def _gather(text: str | None) -> list[str | None]:
    said: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(said, text)
    return said
