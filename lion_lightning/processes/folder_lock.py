"""A lock on a folder, for one run at a time; it is released however the process ends."""

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
    """An exclusive lock on a folder.

    The system holds the lock (``flock``) while a process has the lock file open, so a killed process leaves no lock.
    The file itself stays, with the current or last holder.

    Args:
        folder: The folder; created if needed.
        command: Command that uses the folder, for the error message.
        setting: Setting of the folder, for the error message.
    """

    def __init__(self, folder: Path, command: str, setting: str) -> None:
        self.folder, self.command, self.setting = folder, command, setting
        self._file: IO[str] | None = None

    def acquire(self, patience: float = 0.0) -> None:
        """Acquire the lock.

        Args:
            patience: Seconds to wait for child processes of a dead holder, which are about to stop.

        Raises:
            ValueError: Another process holds the lock; the message names it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        file = open(self.folder / NAME, "a+", encoding="utf-8")  # noqa: SIM115 (open while the lock is held)
        until = time.monotonic() + patience
        while not _locked(file, self.folder):
            holder = _holder(self.folder)
            alive = _alive(holder)
            if alive or time.monotonic() > until:
                file.close()
                process = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
                if alive:
                    cause = f"{self.command} is using this folder ({process})"
                else:  # children inherit the open file, and with it the lock
                    cause = f"a child process of {self.command} ({process}) still uses this folder"
                raise ValueError(f"{self.folder}: {cause}; wait for it, stop it, or give another {self.setting}")
            time.sleep(0.1)
        self._file = file
        file.truncate(0)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}) + "\n")
        file.flush()

    @contextmanager
    def held(self, patience: float = 0.0) -> Iterator[None]:
        """Hold the lock in a ``with`` block; see :meth:`acquire`."""
        self.acquire(patience)
        try:
            yield
        finally:
            self.release()

    @property
    def inherited(self) -> tuple[int, ...]:
        """File descriptors to pass to a child process that shall hold the lock, too."""
        return () if self._file is None else (self._file.fileno(),)

    def release(self) -> None:
        """Release the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _locked(file: IO[str], folder: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked (%s): make sure that no other run writes to it.", folder, error.strerror)
    return True


def _holder(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / NAME).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _alive(holder: dict[str, Any]) -> bool:
    """Return whether the process runs; assumed for another machine."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True
