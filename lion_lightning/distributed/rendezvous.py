"""How processes share work through a folder, so that none waits in a collective for one with more to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import TypeVar

from lion_lightning.cache import atomic_write, explain_write_errors

Item = TypeVar("Item")

POLL_SECONDS = 0.1
"""Between two looks for what another rank has written."""

BEAT_SECONDS = 2.0
"""Between two signs of life, and between two looks for those of the others."""

PATIENCE_SECONDS = 180.0
"""Without a sign of life a rank is given up; longer than network folders may keep news from other machines."""


class RankLostError(RuntimeError):
    """Another rank was ended without a word: by a signal, for want of memory, or with its machine."""


@dataclass(frozen=True)
class WorkerGroup:
    """This process among those that make something together. They meet in a folder, and only there while they work.

    Attributes:
        folder: All of them see it, and may write there.
        rank: This process.
        world: Number of processes.
        attempt: Name of this start, the same for all ranks and for no other start: what an earlier one that was killed
            has left is never looked at.
    """

    folder: Path = Path()
    rank: int = 0
    world: int = 1
    attempt: str = ""

    @property
    def notes(self) -> Path:
        """Folder of what the ranks tell each other; whoever called the workers removes it in the end."""
        return self.folder / f"group-{self.attempt}"

    def mine(self, items: Sequence[Item]) -> list[Item]:
        """What this rank works on: every ``world``-th."""
        return list(items[self.rank :: self.world])

    def run_of(self, items: Sequence[Item]) -> list[Item]:
        """What this rank works on where neighbours are best read together: items in a row."""
        bounds = [len(items) * rank // self.world for rank in (self.rank, self.rank + 1)]
        return list(items[slice(*bounds)])

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Give signs of life while working or waiting, and tell the others if this rank fails.

        Raises:
            ValueError: The folder cannot be written.
        """
        if self.world == 1:
            yield
            return
        with explain_write_errors(
            self.folder, "notes for the other ranks", "give all ranks a folder that they can write in"
        ):
            self.notes.mkdir(parents=True, exist_ok=True)
        with self._beating():
            try:
                yield
            except BaseException as error:
                self.tell(f"failed-{self.rank}", f"{type(error).__name__}: {error}")
                raise

    def tell(self, name: str, text: str = "") -> None:
        """Leave a note.

        Args:
            name: Its name, for one rank to write.
            text: What it says.
        """
        with atomic_write(self.notes / name) as temporary:
            temporary.write_text(text, "utf-8")

    def wait_for(self, paths: Iterable[Path]) -> None:
        """Wait until files are there.

        Raises:
            RuntimeError: Another rank has failed, or was lost.
        """
        for path in paths:
            self.wait_until(path.exists)

    def wait_until(self, there: Callable[[], bool]) -> None:
        """Wait until what other ranks make is there.

        Args:
            there: Whether it is.

        Raises:
            RuntimeError: Another rank has failed, or was lost (:class:`RankLostError`).
        """
        watch = _Watch(self)
        while not there():
            watch.look()
            time.sleep(POLL_SECONDS)

    def require_same(self, what: str, name: str, value: str) -> None:
        """Make sure that all ranks are about to do the same.

        Args:
            what: What it is about, for the message.
            name: Name of the notes about it, the same on all ranks.
            value: What this rank is about to do.

        Raises:
            ValueError: On every rank, if they differ.
        """
        if self.world == 1:
            return
        self.tell(f"{name}-{self.rank}", value)
        notes = [self.notes / f"{name}-{rank}" for rank in range(self.world)]
        self.wait_for(notes)
        texts = [note.read_text("utf-8", "replace") for note in notes]
        for rank, text in enumerate(texts):
            if text != texts[0]:
                raise ValueError(f"{what}: rank {rank} has another than rank 0; give all ranks the same")

    @contextmanager
    def _beating(self) -> Iterator[None]:
        over = Event()
        thread = Thread(target=self._beat, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _beat(self, over: Event) -> None:
        while True:
            with suppress(OSError):  # one that is missed is no harm
                (self.notes / f"alive-{self.rank}").touch()
            if over.wait(BEAT_SECONDS):
                return


ALONE = WorkerGroup()
"""A single process, which shares with nobody."""


@dataclass
class _Watch:
    """When the other ranks were last heard of, by this rank's clock: those of machines differ."""

    workers: WorkerGroup
    heard: dict[int, tuple[int, float]] = field(default_factory=dict)
    next: float = 0.0

    def look(self) -> None:
        """Raise if one has failed, or was lost."""
        if time.monotonic() < self.next:
            return
        for note in sorted(self.workers.notes.glob("failed-*")):
            raise RuntimeError(f"rank {note.name.rpartition('-')[2]} failed: {note.read_text('utf-8', 'replace')}")
        for rank in range(self.workers.world):
            self._listen(rank)
        self.next = time.monotonic() + min(BEAT_SECONDS, PATIENCE_SECONDS / 2)

    def _listen(self, rank: int) -> None:
        note, now = self.workers.notes / f"alive-{rank}", time.monotonic()
        beat = note.stat().st_mtime_ns if note.exists() else 0
        last, since = self.heard.get(rank, (-1, now))
        self.heard[rank] = (beat, since if beat == last else now)
        if now - self.heard[rank][1] > PATIENCE_SECONDS:
            raise RankLostError(
                f"rank {rank} was lost: no sign of life for {PATIENCE_SECONDS:.0f} seconds; see its own messages "
                "(was it ended for want of memory?), and start again: what was finished is kept"
            )
