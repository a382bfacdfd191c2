"""Two or more processes that take turns: each does one step when told to, and sleeps while the others work.

The parent holds ``Worker`` objects and calls ``turn()``; a worker's script holds a ``Turns`` and calls ``start()`` when
it has loaded and ``end(measurements)`` after each step. So sides are compared step by step on the same data, what
each loads is loaded once, and a process's peak memory is its side's own.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NoReturn


class Worker:
    """A side in a process of its own.

    Args:
        script: What to run.
        *arguments: Its arguments.
        threads: Cores that it may use.

    Raises:
        SystemExit: From ``turn``: the process has failed; the end of what it printed is the message.
    """

    def __init__(self, script: Path, *arguments: str, threads: int = 2) -> None:
        settings = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self.title = " ".join([script.stem, *arguments])[:200]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (close() does)
        self._process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | settings,
        )

    def turn(self) -> dict[str, Any]:
        """Let it do one step; what it found."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
            measurements: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            self._fail()
        return measurements

    def _fail(self) -> NoReturn:
        self._errors.seek(0)
        raise SystemExit(f"{self.title} failed:\n{self._errors.read()[-3000:]}") from None

    def finish(self) -> None:
        """Wait until it has done what it takes no turns for."""
        if self._process.wait():
            self._fail()
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


@contextmanager
def ended(workers: dict[str, Worker]) -> Iterator[dict[str, Worker]]:
    """Workers, by name, that are ended whatever happens; so are those that are put there later.

    Args:
        workers: What there is so far.
    """
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


class Turns:
    """The worker's end. Whatever libraries print goes to standard error from now on.

    Attributes:
        libraries: MiB of a process that has imported all and loaded no model yet; the worker sets it.
    """

    libraries: ClassVar[float] = 0.0

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._loaded = 0.0
        self._start = (0.0, 0.0)

    def start(self) -> None:
        """Everything is loaded: wait for the first turn."""
        self._loaded = resident_mib()
        self._wait()

    def end(self, **measurements: Any) -> None:
        """A step has been done: tell its time, its memory and the measurements given, and wait for the next turn.

        Args:
            **measurements: What else there is to tell.
        """
        times = {"seconds": time.perf_counter() - self._start[0], "cpu_seconds": time.process_time() - self._start[1]}
        peak = peak_mib()
        memory = {"peak_mib": peak, "growth_mib": peak - self._loaded, "above_libraries_mib": peak - self.libraries}
        print(json.dumps({**times, **memory, **measurements}), file=self._answers, flush=True)
        self._wait()

    def _wait(self) -> None:
        if not sys.stdin.readline():
            os._exit(0)
        self._start = (time.perf_counter(), time.process_time())


def resident_mib() -> float:
    """Memory that the process holds now."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def peak_mib() -> float:
    """The most that it has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux
