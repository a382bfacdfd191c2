"""One run at a time in a folder: a lock that any death of its holder releases."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

log = logging.getLogger(__name__)

NAME = ".lock"


class FolderLock:
    """Keeps a second process from working in a folder.

    The system holds the lock (``flock``) as long as a process has the file open, so a killed one leaves none behind.
    The file stays: it says who holds the lock, or held it last.

    Args:
        folder: The folder; made if needed.
        what: What works there, for the message of who comes second.
        instead: What the second one is to give in place of the folder.
    """

    def __init__(self, folder: Path, what: str, instead: str) -> None:
        self.folder, self.what, self.instead = folder, what, instead
        self._file: IO[str] | None = None

    def acquire(self, patience: float = 0.0) -> None:
        """Take the lock.

        Args:
            patience: Seconds to wait for the children of a holder that is dead itself: they stop when they notice.

        Raises:
            ValueError: Another process holds it; the message says which.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        file = open(self.folder / NAME, "a+", encoding="utf-8")  # noqa: SIM115 (open as long as the lock is held)
        until = time.monotonic() + patience
        while not _locked(file, self.folder):
            holder = _holder(self.folder)
            if _alive(holder) or time.monotonic() > until:
                file.close()
                raise ValueError(
                    f"{self.folder}: {_who(self.what, holder)}; wait for it, stop it, or give {self.instead}"
                )
            time.sleep(0.1)
        self._file = file
        file.truncate(0)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}) + "\n")
        file.flush()

    @contextmanager
    def held(self, patience: float = 0.0) -> Iterator[None]:
        """Hold the lock for a while; see :meth:`acquire`."""
        self.acquire(patience)
        try:
            yield
        finally:
            self.release()

    @property
    def inherited(self) -> tuple[int, ...]:
        """File descriptors that keep the lock in a child process, which then holds it too."""
        return () if self._file is None else (self._file.fileno(),)

    def release(self) -> None:
        """Let others work there."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _locked(file: IO[str], folder: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked (%s): let no other run write to it meanwhile.", folder, error.strerror)
    return True


def _holder(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / NAME).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _alive(holder: dict[str, Any]) -> bool:
    """Whether the process is there; one on another machine is taken to be."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _who(what: str, holder: dict[str, Any]) -> str:
    place = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
    if not _alive(holder):
        return f"a process that {what} ({place}) started is still at work there"
    return f"{what} is at work there ({place})"
