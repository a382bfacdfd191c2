"""Ranks that share work through a folder, so that none waits in a collective for one with more to do."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Self, TypeVar
from uuid import uuid4

from lion_lightning.cache import atomic_write, explain_write_errors, remove
from lion_lightning.distributed.ranks import Ranks

Item = TypeVar("Item")

POLL_SECONDS = 0.1
"""Time between two checks for a file of another rank."""

BEAT_SECONDS = 2.0
"""Time between two heartbeats, and between two checks for those of the others."""

PATIENCE_SECONDS = 180.0
"""A rank without a heartbeat for so long is lost; longer than network folders may hide news from other machines."""

_DAY = 24 * 3600.0


class RankLostError(RuntimeError):
    """Another rank ended without a message: by a signal, out of memory, or with its machine."""


@contextmanager
def rendezvous(ranks: Ranks, folder: Path) -> Iterator[WorkerGroup]:
    """Group the ranks that see one folder: all of them, or those of each machine. If one fails, all raise."""
    if ranks.size == 1:
        yield ALONE
        return
    group = _group_of(ranks, folder)
    failure: Exception | None = None
    try:
        with group.heartbeat():
            yield group
    except RankLostError:
        raise  # a collective would wait for the lost rank
    except Exception as error:
        failure = error
    # Ranks that have not failed learn of it here, at the latest.
    failures = ranks.all_gather(failure and f"{type(failure).__name__}: {failure}")
    if group.rank == 0:
        shutil.rmtree(group.messages, ignore_errors=True)
    if failure is not None:
        raise failure
    for rank, message in enumerate(failures):
        if message is not None:
            raise RuntimeError(f"rank {rank} failed: {message}")


def _group_of(ranks: Ranks, folder: Path) -> WorkerGroup:
    group = WorkerGroup.of(ranks, folder)
    sign = folder / f"sign-{group.attempt}"
    if ranks.is_first:
        with suppress(OSError):  # whatever is written there next raises an error that names the fix
            folder.mkdir(parents=True, exist_ok=True)
            _remove_old_messages(folder)
            sign.touch()
    ranks.barrier()
    # Machines without a shared disk do not see rank 0's file: each then works for itself.
    shared = ranks.all_agree(sign.exists())
    if ranks.is_first:
        sign.unlink(missing_ok=True)
    return group if shared else WorkerGroup(folder, ranks.local_rank, ranks.local_size, group.attempt)


def _remove_old_messages(folder: Path) -> None:
    """Remove what killed ranks left: everything without a heartbeat for a day."""
    for path in [*folder.glob("group-*"), *folder.glob("sign-*")]:
        with suppress(OSError):  # another start may be removing the same
            last = max(part.stat().st_mtime for part in (path, *path.glob("*")))
            if time.time() - last > _DAY:
                remove(path)


@dataclass(frozen=True)
class WorkerGroup:
    """This process in a group that works together, and exchanges messages through a folder instead of collectives.

    Attributes:
        folder: All of them can read and write it.
        rank: Number of this process in the group.
        size: Number of processes in the group.
        attempt: Name of this start, the same on all ranks and on no other start: messages of an earlier start that was
            killed are never read.
    """

    folder: Path = Path()
    rank: int = 0
    size: int = 1
    attempt: str = ""

    @classmethod
    def of(cls, ranks: Ranks, folder: Path) -> Self:
        """A group of all ranks, which must call this together."""
        return cls(folder, ranks.rank, ranks.size, ranks.broadcast(uuid4().hex))

    @property
    def messages(self) -> Path:
        """Folder of the messages between ranks; whoever made the group removes it at the end."""
        return self.folder / f"group-{self.attempt}"

    def strided(self, items: Sequence[Item]) -> list[Item]:
        """This rank's share of the items: every ``size``-th."""
        return list(items[self.rank :: self.size])

    def contiguous(self, items: Sequence[Item]) -> list[Item]:
        """This rank's share of the items as one run, where neighbors are best read together."""
        start = len(items) * self.rank // self.size
        stop = len(items) * (self.rank + 1) // self.size
        return list(items[start:stop])

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Send heartbeats while the block runs, and tell the others if it fails."""
        if self.size == 1:
            yield
            return
        with explain_write_errors(self.folder, "messages to the other ranks", "give all ranks a writable folder"):
            self.messages.mkdir(parents=True, exist_ok=True)
        over = Event()
        thread = Thread(target=self._beat, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            self.send(f"failed-{self.rank}", f"{type(error).__name__}: {error}")
            raise
        finally:
            over.set()
            thread.join()

    def _beat(self, over: Event) -> None:
        while True:
            with suppress(OSError):  # one missed beat is harmless
                (self.messages / f"alive-{self.rank}").touch()
            if over.wait(BEAT_SECONDS):
                return

    def send(self, name: str, text: str = "") -> None:
        """Write a message to the other ranks.

        Args:
            name: File name; no two ranks write the same.
            text: Content.
        """
        with atomic_write(self.messages / name) as temporary:
            temporary.write_text(text, "utf-8")

    def wait_for(self, paths: Iterable[Path]) -> None:
        """Wait until all files exist."""
        for path in paths:
            self.wait_until(path.exists)

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Wait for other ranks.

        Raises:
            RuntimeError: Another rank failed, or was lost (:class:`RankLostError`).
        """
        others = _Others(self)  # whoever waits checks that the others live
        while not done():
            others.check()
            time.sleep(POLL_SECONDS)

    def from_first(self, name: str, make: Callable[[], str]) -> str:
        """A text that the first rank makes, on all ranks; the others wait for it.

        Args:
            name: File name of the message, another for each call.
            make: Makes the text, on the first rank alone.
        """
        if self.rank > 0:
            self.wait_for([self.messages / name])
            return (self.messages / name).read_text("utf-8")
        text = make()
        if self.size > 1:
            self.send(name, text)
        return text

    def require_same(self, what: str, name: str, value: str) -> None:
        """Require the same value on all ranks.

        Raises:
            ValueError: On every rank, if they differ.
        """
        if self.size == 1:
            return
        self.send(f"{name}-{self.rank}", value)
        messages = [self.messages / f"{name}-{rank}" for rank in range(self.size)]
        self.wait_for(messages)
        values = [message.read_text("utf-8", "replace") for message in messages]
        for rank, other in enumerate(values):
            if other != values[0]:
                raise ValueError(f"{what}: rank {rank} has another than rank 0; give all ranks the same")


ALONE = WorkerGroup()
"""A single process."""


@dataclass
class _Others:
    """Heartbeats of the other ranks, timed by this rank's clock: the clocks of machines differ."""

    group: WorkerGroup
    beats: dict[int, tuple[int, float]] = field(default_factory=dict)  # last beat, and since when it is the last
    next_check: float = 0.0

    def check(self) -> None:
        """Raise if a rank has failed or was lost."""
        if time.monotonic() < self.next_check:
            return
        for message in sorted(self.group.messages.glob("failed-*")):
            failed = message.name.rpartition("-")[2]
            raise RuntimeError(f"rank {failed} failed: {message.read_text('utf-8', 'replace')}")
        now = time.monotonic()
        for rank in range(self.group.size):
            file = self.group.messages / f"alive-{rank}"
            beat = file.stat().st_mtime_ns if file.exists() else 0
            last, since = self.beats.get(rank, (-1, now))
            self.beats[rank] = (beat, since if beat == last else now)
            if now - self.beats[rank][1] > PATIENCE_SECONDS:
                raise RankLostError(
                    f"rank {rank} was lost: no heartbeat for {PATIENCE_SECONDS:.0f} seconds; see its own output "
                    "(was it out of memory?), and start again: finished work is kept"
                )
        self.next_check = time.monotonic() + min(BEAT_SECONDS, PATIENCE_SECONDS / 2)
