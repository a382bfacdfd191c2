"""Run a plan: stages of a chain one after the other, chains side by side, and go on where an earlier run stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock
from typing import Any

from lion_lightning.processes.folder_lock import FolderLock
from lion_lightning.processes.stopping import Stopped
from lion_lightning.tools.pipeline.plan import Plan, StagePlan, dumped
from lion_lightning.tools.pipeline.stage import DONE, begin

LOG = "log.txt"

PATIENCE_SECONDS = 30.0
"""How long a run waits for the stages of one that was killed itself: they stop when they notice."""

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StageError(ValueError):
    """A stage has failed; the message says which, and where its log is."""


class Runner:
    """Runs the stages of a plan, each in a process of its own.

    Chains wait for a free worker stage by stage, so that all of them come forward alike. With several workers each
    stage writes to ``log.txt`` in its folder, and has its share of the machine's cores; a single one writes to the
    terminal. A signal that stops the run is passed on to its stages, and waits for them.

    Args:
        plan: What to run.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._folder = FolderLock(plan.out, "`lion run`", "another `out`")
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = Event()
        self._lock = Lock()

    def run(self) -> None:
        """Run all that is not done yet.

        Raises:
            StageError: If a stage failed; no further stage is begun then.
            ExceptionGroup: If something would go wrong later, as far as that can be known; nothing is begun then.
            Stopped: If a stage was stopped by a signal.
            ValueError: If a folder holds the work of another config, or another process works there.
        """
        with self._folder.held(PATIENCE_SECONDS), self._stages_stopped_on_errors():
            self._check()
            self._run_chains()

    def _check(self) -> None:
        """Find out what would fail in hours, in a process that gives its memory back."""
        if all((stage.folder / DONE).exists() for chain in self.plan.chains for stage in chain):
            return
        print(f"{self.plan.out}: looking at configs, data and disk", flush=True)
        command = [sys.executable, "-m", "lion_lightning.tools.pipeline"]
        with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as answer:
            question.write(dumped(self.plan).encode())
            question.seek(0)
            code = self._process(command, stdin=question, stdout=answer)
            _raise_if_stopped(code)
            answer.seek(0)
            found = json.load(answer) if code == 0 else []
        if code:
            raise StageError(
                f"{self.plan.out}: the look at the stages failed before anything trained (exit code {code})"
            )
        if found:
            raise ExceptionGroup("before anything trained", [ValueError(line) for line in found])

    def _run_chains(self) -> None:
        pool = ThreadPoolExecutor(self.plan.workers)
        try:
            pending = {pool.submit(self._stage, chain[0]): chain[1:] for chain in self.plan.chains}
            while pending:
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    self._next(pool, pending, future)
        finally:
            pool.shutdown(wait=False)

    def _next(self, pool: ThreadPoolExecutor, pending: dict[Future[None], list[StagePlan]], done: Future[None]) -> None:
        rest = pending.pop(done)
        done.result()
        if rest:
            pending[pool.submit(self._stage, rest[0])] = rest[1:]

    def _stage(self, stage: StagePlan) -> None:
        if self._stopped.is_set():
            return
        if not begin(stage):
            return self._say(stage, "done before")
        self._say(stage, "begins")
        began = time.monotonic()
        code = self._stage_process(stage)
        if self._stopped.is_set():
            return None
        self._require_done(stage, code)
        return self._say(stage, f"done in {time.monotonic() - began:.0f} s")

    def _require_done(self, stage: StagePlan, code: int) -> None:
        """Believe no exit code: a stage is done when it has said so in its folder, and only then."""
        if (stage.folder / DONE).exists():
            return
        if _stopped_by(code):
            self._say(stage, "was stopped; the same command goes on with it")
        _raise_if_stopped(code)
        if code < 0:
            name = signal.Signals(-code).name
            raise StageError(f"{stage.folder}: the stage was ended by {name}{self._log_end(stage)}; run the same again")
        raise StageError(f"{stage.folder}: the stage failed{self._log_end(stage)}; fix it and run the same again")

    def _stage_process(self, stage: StagePlan) -> int:
        command = [sys.executable, "-m", "lion_lightning.tools.pipeline", str(stage.folder)]
        command += [str(stage.start)] if stage.start else []
        if not self._quiet:
            return self._process(command)
        with self._log(stage).open("ab") as log:
            return self._process(command, stdout=log, stderr=log)

    def _process(self, command: list[str], **streams: Any) -> int:
        held = self._folder.inherited  # a child holds the lock, too, should it outlive this process
        with self._lock:
            if self._stopped.is_set():
                return 0
            process = subprocess.Popen(command, env=self._environment(), pass_fds=held, **streams)
            self._processes.add(process)
        return process.wait()

    @property
    def _quiet(self) -> bool:
        return self.plan.workers > 1

    def _log(self, stage: StagePlan) -> Path:
        return stage.folder / LOG

    def _log_end(self, stage: StagePlan) -> str:
        """The last line of the log, which is where an error stands."""
        if not self._quiet:
            return ""
        lines = self._log(stage).read_text("utf-8", errors="replace").strip().splitlines()
        return f" (see {self._log(stage)}: {lines[-1] if lines else 'nothing was written'})"

    def _environment(self) -> dict[str, str]:
        threads = max(1, (os.cpu_count() or 1) // self.plan.workers)
        return {**({"OMP_NUM_THREADS": str(threads)} if self._quiet else {}), **os.environ}

    def _say(self, stage: StagePlan, what: str) -> None:
        print(f"{stage.folder}: {what}", flush=True)

    @contextmanager
    def _stages_stopped_on_errors(self) -> Iterator[None]:
        """Stop what runs when something goes wrong, and wait for it, so that nothing trains on unseen."""
        try:
            yield
        except BaseException as error:
            with self._lock:
                self._stopped.set()
                running = [process for process in self._processes if process.poll() is None]
            stop(running, _signal_of(error))
            raise


def _stopped_by(code: int) -> int | None:
    """The signal that told a process to stop; None for another end."""
    return next((signum for signum in STOPS if code in (128 + signum, -signum)), None)


def _raise_if_stopped(code: int) -> None:
    signum = _stopped_by(code)
    if signum is not None:
        raise Stopped(signum)


def _signal_of(error: BaseException) -> int:
    if isinstance(error, Stopped):
        return error.signum
    return signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM


def stop(processes: list[subprocess.Popen[bytes]], signum: int) -> None:
    """Pass a signal on and wait. A second one is passed on too, and does not wait for a step; a third one kills.

    Args:
        processes: Those that are to stop.
        signum: The first signal.
    """
    came = 1
    for process in processes:
        process.send_signal(signum)
    for process in processes:
        while process.poll() is None:
            try:
                process.wait()
            except (Stopped, KeyboardInterrupt) as again:
                came += 1
                for other in processes:
                    other.send_signal(_signal_of(again) if came < 3 else signal.SIGKILL)
