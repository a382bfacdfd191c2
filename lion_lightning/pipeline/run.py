"""Run a plan: stages of a chain one after the other, chains side by side, and go on where an earlier run stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock

from lion_lightning.pipeline.plan import Plan, StagePlan
from lion_lightning.pipeline.stage import begin

LOG = "log.txt"


class StageError(ValueError):
    """A stage has failed; the message says which, and where its log is."""


class Runner:
    """Runs the stages of a plan, each in a process of its own.

    Chains wait for a free worker stage by stage, so that all of them come forward alike. With several workers each
    stage writes to ``log.txt`` in its folder, and has its share of the machine's cores; a single one writes to the
    terminal.

    Args:
        plan: What to run.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = Event()
        self._lock = Lock()

    def run(self) -> None:
        """Run all that is not done yet.

        Raises:
            StageError: If a stage failed; no further stage is begun then.
            ValueError: If a folder holds the work of another config.
        """
        with ThreadPoolExecutor(self.plan.workers) as pool, self._stopping():
            pending = {pool.submit(self._stage, chain[0]): chain[1:] for chain in self.plan.chains}
            while pending:
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    self._next(pool, pending, future)

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
        code = self._process(stage)
        if self._stopped.is_set():
            return None
        if code:
            raise StageError(f"{stage.folder}: the stage failed{self._log_end(stage)}; mend it and run the same again")
        return self._say(stage, f"done in {time.monotonic() - began:.0f} s")

    def _process(self, stage: StagePlan) -> int:
        command = [sys.executable, "-m", "lion_lightning.pipeline", str(stage.folder)]
        command += [str(stage.start)] if stage.start else []
        log = open(self._log(stage), "ab") if self._quiet else None  # noqa: SIM115 (None is no file to close)
        try:
            with self._lock:
                process = subprocess.Popen(command, env=self._environment(), stdout=log, stderr=log)
                self._processes.add(process)
            return process.wait()
        finally:
            self._processes.discard(process)
            if log:
                log.close()

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
    def _stopping(self) -> Iterator[None]:
        """End what runs when something goes wrong, so that nothing trains on unseen."""
        try:
            yield
        except BaseException:
            with self._lock:
                self._stopped.set()
                for process in self._processes:
                    process.terminate()
            raise
