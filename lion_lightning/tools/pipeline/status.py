"""Live status of the running stages: on a terminal one line per stage, rewritten; elsewhere a line now and then."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from lion_lightning.printing import clock, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

EVERY_SECONDS = 15.0
"""Between two lines of a stage where there is no terminal."""

_TAIL_BYTES = 8192

_FIT = re.compile(r"(\d+%, )?epoch \d.*: .*|sanity check.*: .*|validation at step \d+.*: .*")
"""Lines of :class:`~lion_lightning.callbacks.LionProgressBar`."""

_TQDM = re.compile(r"(?P<what>[^|]*): +(?P<percent>\d+%)\|[^|]*\| (?P<count>\S+/\S+) \[[\d:]+<(?P<left>[\d:]+)")
"""A bar of tqdm: ``answers:  47%|####     | 512/1100 [00:06<00:07, 75.77it/s]``."""


_WARNING = re.compile(r"(?:^|(?<=\]))warning: (.*)", re.MULTILINE)
"""A warning of the package, on its own line or behind a bar."""


def progress_of(log: Path, start: int = 0) -> str:
    """The newest progress in a stage's log, as one short line; empty if there is none yet.

    Args:
        log: The stage's log.
        start: Byte to read from: what is before it is of an earlier process.
    """
    with log.open("rb") as file:
        file.seek(max(start, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    # The last piece may still be written; a bar that is drawn again begins with \r, so its last state may be there.
    for line in reversed(re.split(r"[\r\n]+", text)):
        if bar := _TQDM.match(line):
            left = re.sub(r"^0(?=\d:)", "", bar["left"])  # tqdm's 00:07 as 0:07
            return printable(f"{bar['percent']}, {bar['what']} {bar['count']}, {left} left")
        if _FIT.fullmatch(line.strip()):
            return printable(line.strip())
    return ""


@dataclass
class RunningStage:
    """A stage that runs.

    Attributes:
        log: Its log.
        start: Size of the log when it began.
        read: Bytes of the log whose warnings are known.
        began: When it began, on the monotonic clock.
        printed: Progress that was printed last.
        printed_at: When that was.
    """

    log: Path
    start: int
    read: int
    began: float
    printed: str = ""
    printed_at: float = 0.0


class Status:
    """Prints messages of a run, and the progress of its running stages from their logs.

    Stages begin and end in any thread; the lines are drawn where :meth:`refresh` is called.

    Attributes:
        warned: Warnings that were printed, which are not printed again.
    """

    def __init__(self) -> None:
        self.warned: set[str] = set()
        self._running: dict[str, RunningStage] = {}
        self._lock = Lock()
        self._console: Console | None = None
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the lines within the block, and leave no trace of those that are rewritten."""
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False, markup=False, emoji=False)
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            yield
            return
        with Live(console=self._console, auto_refresh=False, transient=True) as self._live:
            try:
                yield
            finally:
                self._live = None

    def begin(self, name: str, log: Path) -> None:
        """A stage of this name begins, and appends to a log, which may be there already."""
        start = log.stat().st_size if log.exists() else 0
        with self._lock:
            self._running[name] = RunningStage(log, start, start, time.monotonic(), printed_at=time.monotonic())

    def end(self, name: str) -> float:
        """A stage is over; return the seconds that it took."""
        with self._lock:
            self._say_warnings(name)
            return time.monotonic() - self._running.pop(name).began

    def say(self, text: str) -> None:
        """Print a line, above those that are rewritten."""
        if self._live is not None and self._console is not None:
            self._console.print(text, soft_wrap=True)
        else:
            print(text, flush=True)

    def _say_warnings(self, name: str) -> None:
        """Print what a stage has warned of since the last time, up to the last complete line of its log."""
        stage = self._running[name]
        if not stage.log.exists():
            return
        with stage.log.open("rb") as file:
            file.seek(stage.read)
            lines, end, _ = file.read().rpartition(b"\n")
        stage.read += len(lines) + len(end)
        for text in _WARNING.findall(lines.decode("utf-8", errors="replace")):
            if text not in self.warned:
                self.warned.add(text)
                self.say(f"{name}: warning: {printable(text)}")

    def refresh(self) -> None:
        """Draw the lines anew, or print those that are due."""
        with self._lock:
            running = dict(self._running)
            for name in running:
                self._say_warnings(name)
        if self._live is not None:
            from rich.console import Group
            from rich.text import Text

            texts = []
            for name, stage in running.items():
                line = f"{name} {clock(time.monotonic() - stage.began)} | {_progress(stage) or 'starting'}"
                texts.append(Text(line, no_wrap=True, overflow="ellipsis"))
            self._live.update(Group(*texts), refresh=True)
            return
        now = time.monotonic()
        for name, stage in running.items():
            if now - stage.printed_at < EVERY_SECONDS:
                continue
            stage.printed_at, progress = now, _progress(stage)
            if progress and progress != stage.printed:
                self.say(f"{name}: {progress}")
                stage.printed = progress


def _progress(stage: RunningStage) -> str:
    return progress_of(stage.log, stage.start) if stage.log.exists() else ""
