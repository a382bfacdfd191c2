"""Checks that run in a process of their own, which is ended where one takes too long."""

from __future__ import annotations

import atexit
import json
import logging
import subprocess
import sys
import threading
from typing import Any

logger = logging.getLogger(__name__)

_FIRST = {"has_value": ("1", "1"), "matches": ("a", "a"), "fits": ({}, "{}")}
"""Arguments of each check that let it load its libraries."""


class LimitedCheck:
    """One of :data:`lion_lightning.processes.limited_checks.CHECKS`, which no text can make take for ever.

    A check that takes too long, or more memory than it may have, says no; a warning names the first one.

    Args:
        check: Its name.
        seconds: That it may take.
    """

    def __init__(self, check: str, seconds: float = 5.0) -> None:
        self.check, self.seconds = check, seconds
        self._warned = False

    def __call__(self, where: str, *arguments: Any) -> bool:
        """What the check says.

        Args:
            where: What the arguments are of, for messages.
            arguments: Of the check, plain data.

        Raises:
            ValueError: The check cannot be made.
        """
        said = _worker.ask(self.check, arguments, self.seconds)
        if "error" in said:
            raise ValueError(said["error"])
        if "gave_up" in said and not self._warned:
            self._warned = True
            message = "%s: `%s` gave up on this answer (%s), so it counts as wrong; others like it are not named"
            logger.warning(message, where, self.check, said["gave_up"])
        return bool(said.get("right", False))


class _Worker:
    """The process, started when it is first asked, and again after it had to be ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._loaded: set[str] = set()
        self._lock = threading.Lock()

    def ask(self, check: str, arguments: Any, seconds: float) -> dict[str, Any]:
        """What a check says, or that it gave up."""
        with self._lock:
            if check not in self._loaded:
                if self._answer([check, _FIRST[check]], 300.0) is None:  # libraries may take a while
                    raise ValueError(f"the process of the check `{check}` does not start: {' '.join(_COMMAND)}")
                self._loaded.add(check)
            return self._answer([check, arguments], seconds) or {"gave_up": f"{seconds:g} s were over"}

    def end(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None
        self._loaded.clear()

    def _answer(self, request: Any, seconds: float) -> dict[str, Any] | None:
        """The reply; None where the process had to be ended, or has ended itself."""
        process = self._process = self._process or _started()
        assert process.stdin is not None
        assert process.stdout is not None
        clock = threading.Timer(seconds, process.kill)
        clock.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            clock.cancel()
        if not line.endswith("\n"):
            self.end()
            return None
        said: dict[str, Any] = json.loads(line)
        return said


_COMMAND = [sys.executable, "-m", "lion_lightning.processes.limited_checks"]


def _started() -> subprocess.Popen[str]:
    pipe, no = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(_COMMAND, stdin=pipe, stdout=pipe, stderr=no, encoding="utf-8")


_worker = _Worker()
atexit.register(_worker.end)
