"""Checks of model answers in a separate process with limited time and memory."""

from __future__ import annotations

import atexit
import json
import logging
import subprocess
import sys
import threading
from typing import Any

logger = logging.getLogger(__name__)

_WARM_UP: dict[str, tuple[Any, ...]] = {
    "math_equal": ("1", "1"),
    "math_value": ("1",),
    "regex_found": ("a", "a"),
    "schema_valid": ({}, "{}"),
}
"""Arguments for the first call of each check, which loads its libraries."""


class LimitedCheck:
    """A check of :data:`lion_lightning.processes.limited_checks.CHECKS` with limited time and memory.

    Exceeding a limit counts as False, and gives no value; the first time there is a warning.

    Args:
        check: Name of the check.
        seconds: Maximum time per call.
    """

    def __init__(self, check: str, seconds: float = 5.0) -> None:
        self.check, self.seconds = check, seconds
        self._warned = False

    def __call__(self, where: str, *arguments: Any) -> bool:
        """Run the check with plain data; ``where`` is the location of the prompt, for messages.

        Raises:
            ValueError: The check failed.
        """
        return bool(self.value(where, *arguments))

    def value(self, where: str, *arguments: Any) -> Any:
        """Result of the check: a bool, or a text; None if it exceeded a limit."""
        reply = _process.run(self.check, arguments, self.seconds)
        if "error" in reply:
            raise ValueError(reply["error"])
        if "gave_up" in reply and not self._warned:
            self._warned = True
            message = "%s: the check %s of this answer exceeded a limit (%s) and counts as failed; shown once"
            logger.warning(message, where, self.check, reply["gave_up"])
        return reply.get("found")


class LimitedProcess:
    """The process of all checks, started at the first call and after each kill."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._loaded: set[str] = set()
        self._lock = threading.Lock()

    def run(self, check: str, arguments: Any, seconds: float) -> dict[str, Any]:
        """Run a check and return its reply, or ``gave_up`` with the limit."""
        with self._lock:
            if check not in self._loaded:
                if self._answer([check, _WARM_UP[check]], 300.0) is None:  # libraries may take a while
                    raise ValueError(f"the process of the check {check} does not start: {' '.join(_COMMAND)}")
                self._loaded.add(check)
            return self._answer([check, arguments], seconds) or {"gave_up": f"{seconds:g} s"}

    def kill(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None
        self._loaded.clear()

    def _answer(self, request: Any, seconds: float) -> dict[str, Any] | None:
        """Send a request; the reply is None if the process was killed or exited."""
        if self._process is None:
            pipe, null = subprocess.PIPE, subprocess.DEVNULL
            self._process = subprocess.Popen(_COMMAND, stdin=pipe, stdout=pipe, stderr=null, encoding="utf-8")
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:  # it exited before it read the request
            line = ""
        finally:
            timer.cancel()
        if not line.endswith("\n"):
            self.kill()
            return None
        reply: dict[str, Any] = json.loads(line)
        return reply


_COMMAND = [sys.executable, "-m", "lion_lightning.processes.limited_checks"]


_process = LimitedProcess()
atexit.register(_process.kill)
