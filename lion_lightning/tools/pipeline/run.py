"""Run a plan: the stages of a chain in order, chains in parallel, resuming where an earlier run stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import chain
from threading import Event, Lock
from typing import Any

from lion_lightning.cache import atomic_write
from lion_lightning.printing import clock
from lion_lightning.processes.folder_lock import FolderLock
from lion_lightning.processes.stopping import Stopped
from lion_lightning.tools.pipeline.plan import Plan, StagePlan, plan_to_yaml
from lion_lightning.tools.pipeline.stage import DONE, begin, changes, score_of, seconds_of
from lion_lightning.tools.pipeline.status import Status

LOG, RUN = "log.txt", "run.json"

PATIENCE_SECONDS = 30.0
"""How long a run waits for the stages of one that was killed itself: they stop when they notice."""

REFRESH_SECONDS = 0.5

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StageError(ValueError):
    """A stage has failed; the message says which, and where its log is."""


class Runner:
    """Runs the stages of a plan, each in its own process.

    Chains wait for a free worker stage by stage, so that all of them advance alike. Each stage writes to ``log.txt`` in
    its folder, and its progress is read from there (:class:`~lion_lightning.tools.pipeline.status.Status`). Chains
    that run in parallel share the machine's cores. A signal that stops the run is passed on to its stages, and the run
    waits for them.

    Args:
        plan: What to run.
        command: Command line of the run, for ``run.json``, by which a report knows what was planned and how to go on.
    """

    def __init__(self, plan: Plan, command: Sequence[str] = ()) -> None:
        self.plan, self.command = plan, command
        self._folder = FolderLock(plan.out, "`lion run`", "`out`")
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._parallel = min(plan.workers, len(plan.chains))
        self._status = Status()
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
            self._write_down()
            self._run_chains()

    def _write_down(self) -> None:
        """Write which stages are planned, and the command."""
        known = {"command": [*self.command], "stages": [stage.name for stage in self.plan.chains[0]]}
        with atomic_write(self.plan.out / RUN) as temporary:
            temporary.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")

    def _check(self) -> None:
        """Check all stages in a separate process, which frees its memory at its end."""
        stages = chain.from_iterable(self.plan.chains)
        if all((stage.folder / DONE).exists() and not changes(stage) for stage in stages):
            return
        self._status.say(f"{self.plan.out}: checking configs, data and disk")
        command = [sys.executable, "-m", "lion_lightning.tools.pipeline"]
        with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as answer:
            question.write(plan_to_yaml(self.plan).encode())
            question.seek(0)
            # Files, not pipes, which could fill up while this process waits.
            code = self._process(command, stdin=question, stdout=answer)
            if (signum := _stopped_by(code)) is not None:
                raise Stopped(signum)
            answer.seek(0)
            found = json.load(answer) if code == 0 else {}
        if code:
            raise StageError(f"{self.plan.out}: the checks before training failed themselves (exit code {code})")
        self._status.warned.update(found["warnings"])  # they are on the terminal
        if found["errors"]:
            raise ExceptionGroup("before anything trained", [ValueError(line) for line in found["errors"]])

    def _run_chains(self) -> None:
        pool = ThreadPoolExecutor(self._parallel)
        try:
            with self._status.shown():
                pending = {pool.submit(self._stage, stages[0]): stages[1:] for stages in self.plan.chains}
                while pending:
                    finished, _ = wait(pending, REFRESH_SECONDS, return_when=FIRST_COMPLETED)
                    for future in finished:
                        rest = pending.pop(future)
                        future.result()  # raises what the stage has raised
                        if rest:
                            pending[pool.submit(self._stage, rest[0])] = rest[1:]
                    self._status.refresh()
        finally:
            pool.shutdown(wait=False)  # its threads wait for processes, which are stopped elsewhere

    def _stage(self, stage: StagePlan) -> None:
        if self._stopped.is_set():
            return
        if not begin(stage):
            self._status.say(f"{stage.folder}: done before")
            return
        stages = [one.folder for one in chain.from_iterable(self.plan.chains)]
        number = f"stage {stages.index(stage.folder) + 1} of {len(stages)}"
        self._status.say(f"{stage.folder}: begins ({number}), log: {stage.folder / LOG}")
        name = str(stage.folder.relative_to(self.plan.out))
        self._status.begin(name, stage.folder / LOG)
        command = [sys.executable, "-m", "lion_lightning.tools.pipeline", str(stage.folder)]
        command += [str(stage.start)] if stage.start else []
        with (stage.folder / LOG).open("ab") as log:
            code = self._process(command, stdout=log, stderr=log)
        seconds = self._status.end(name)
        if self._stopped.is_set():
            return
        self._require_done(stage, code)
        left = self._left()
        end = f"; about {clock(left)} left for all stages" if left else ""
        self._status.say(f"{stage.folder}: done in {clock(seconds)}{score_of(stage.folder)}{end}")

    def _left(self) -> float:
        """Seconds until all stages are done, by those of other seeds; 0 if none is left, or one has no such time."""
        times: dict[str, list[float]] = {}
        left = []
        for stage in chain.from_iterable(self.plan.chains):
            if not (stage.folder / DONE).exists():
                left.append(stage.name)
            elif seconds := seconds_of(stage.folder):
                times.setdefault(stage.name, []).append(seconds)
        if not times.keys() >= set(left):
            return 0.0
        return sum(sum(times[name]) / len(times[name]) for name in left) / self._parallel

    def _require_done(self, stage: StagePlan, code: int) -> None:
        """Trust no exit code: a stage is done when its folder says so."""
        if (stage.folder / DONE).exists():
            return
        signum = _stopped_by(code)
        if signum is not None:
            raise Stopped(signum)
        if code < 0:
            name = signal.Signals(-code).name
            raise StageError(
                f"{stage.folder}: the stage was ended by {name}{_log_end(stage)}; run the same command again"
            )
        raise StageError(f"{stage.folder}: the stage failed{_log_end(stage)}; fix it and run the same command again")

    def _process(self, command: list[str], **streams: Any) -> int:
        held = self._folder.inherited  # a child holds the lock, too, should it outlive this process
        environment = dict(os.environ)
        if self._parallel > 1:  # chains share the cores
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self._parallel)))
        with self._lock:
            if self._stopped.is_set():
                return 0
            process = subprocess.Popen(command, env=environment, pass_fds=held, **streams)
            self._processes.add(process)
        return process.wait()

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
            if isinstance(error, Stopped | KeyboardInterrupt):
                self._status.say(f"{self.plan.out}: stopped; run the same command again to go on from there")
            raise


def _log_end(stage: StagePlan) -> str:
    """The last line of the log, which is where an error is."""
    log = stage.folder / LOG
    lines = log.read_text("utf-8", errors="replace").strip().splitlines() if log.exists() else []
    last = lines[-1].removeprefix("lion: error: ") if lines else "nothing was written"
    return f" (see {log}: {last})"


def _stopped_by(code: int) -> int | None:
    """The signal that told a process to stop; None for another end."""
    return next((signum for signum in STOPS if code in (128 + signum, -signum)), None)


def _signal_of(error: BaseException) -> int:
    if isinstance(error, Stopped):
        return error.signum
    return signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM


def stop(processes: list[subprocess.Popen[bytes]], signum: int) -> None:
    """Pass a signal on and wait. A second one is passed on too, and does not wait for a step; a third one kills."""
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
