"""How processes share work through a folder, so that none waits in a collective for one with more to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

from lion_lightning.cache import replacing

Item = TypeVar("Item")

POLL_SECONDS = 0.1
"""Between two looks for what another rank has written."""


@dataclass(frozen=True)
class Meeting:
    """This process among those that make something together. They meet in a folder, and only there while they work.

    Attributes:
        folder: What is made lies here; the same for all ranks.
        rank: This process.
        world: Number of processes.
        attempt: Name of this start, the same for all ranks.
    """

    folder: Path = Path()
    rank: int = 0
    world: int = 1
    attempt: str = ""

    def at(self, folder: Path) -> Self:
        """The same processes in another folder."""
        return replace(self, folder=folder)

    def mine(self, items: Sequence[Item]) -> list[Item]:
        """What this rank works on: every ``world``-th."""
        return list(items[self.rank :: self.world])

    def run_of(self, items: Sequence[Item]) -> list[Item]:
        """What this rank works on where neighbours are best read together: items in a row."""
        bounds = [len(items) * rank // self.world for rank in (self.rank, self.rank + 1)]
        return list(items[slice(*bounds)])

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Tell the other ranks if this one fails, so that none waits for it in vain."""
        try:
            yield
        except BaseException as error:
            if self.world > 1:
                with replacing(self.folder / f"failed-{self.attempt}-{self.rank}") as draft:
                    draft.write_text(f"{type(error).__name__}: {error}", "utf-8")
            raise

    def wait_for(self, paths: Iterable[Path]) -> None:
        """Wait until files are there.

        Raises:
            RuntimeError: Another rank has failed.
        """
        for path in paths:
            self.wait_until(path.exists)

    def wait_until(self, there: Callable[[], bool]) -> None:
        """Wait until what other ranks make is there.

        Args:
            there: Whether it is.

        Raises:
            RuntimeError: Another rank has failed.
        """
        while not there():
            for failed in self.folder.glob(f"failed-{self.attempt}-*"):
                raise RuntimeError(f"rank {failed.name.rpartition('-')[2]} failed: {failed.read_text('utf-8')}")
            time.sleep(POLL_SECONDS)
