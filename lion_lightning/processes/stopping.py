"""Stop signals: exit codes, and no interruption within an optimizer step."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

REPEAT_SECONDS = 1.0
"""Signals within this time of the first are one stop: Ctrl-C reaches a stage from the terminal and from `lion run`."""


class Stopped(SystemExit):
    """A stop signal was received; the exit code is 128 plus its number, as in shells.

    Args:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signal.Signals(signum)


class StopSignals:
    """Handler of stop signals: raises :class:`Stopped` at once, but within a training step at its end.

    An exception within a step could be followed by a checkpoint of half a step. A second signal does not wait for the
    end of the step.

    Attributes:
        signum: The first signal received; None for none.
        in_step: True during a training step; the trainer checks for signals at its end.
        told_by_parent: True in ranks that rank 0 started. They exit with 0, since Lightning takes any other code for a
            crash and kills the remaining ranks while they save.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.in_step = self.told_by_parent = False
        self._since: float | None = None

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGHUP in a ``with`` block; ignored signals (`nohup`) and other handlers stay.

        Ctrl-C raises KeyboardInterrupt, also after :func:`default_interrupts`.
        """
        if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) == self.handle:
            yield
            return
        self.__init__()  # type: ignore[misc]  # forget the signals of an earlier command
        interrupt: Any = signal.default_int_handler
        handlers = {signal.SIGTERM: self.handle, signal.SIGHUP: self.as_sigterm, signal.SIGINT: interrupt}
        for each in list(handlers):
            if signal.getsignal(each) != signal.SIG_DFL:
                del handlers[each]
        with _silent_in_del(), self._handling(handlers):
            yield

    @contextmanager
    def handle_interrupts(self) -> Iterator[None]:
        """Handle Ctrl-C like SIGTERM in a ``with`` block; otherwise it is a KeyboardInterrupt, e.g. in `lion chat`."""
        free = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ours = free and threading.current_thread() is threading.main_thread()
        with self._handling({signal.SIGINT: self.as_sigterm} if ours else {}):
            yield

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Raise :class:`Stopped`, or leave that to the end of the training step.

        Raises:
            Stopped: Outside of a training step, or for a second signal.
        """
        now, first = time.monotonic(), self._since is None
        self.signum = self.signum or signum
        self._since = now if self._since is None else self._since
        if now - self._since < REPEAT_SECONDS and (self.in_step or not first):
            return
        raise Stopped(self.signum)

    def raise_if_swallowed(self) -> None:
        """Raise :class:`Stopped` again if the first one was lost: ``__del__`` and some imports swallow exceptions.

        Raises:
            Stopped: A signal was received outside of a training step.
        """
        if self.signum is not None and not self.in_step:
            raise Stopped(self.signum)

    def as_sigterm(self, signum: int, frame: FrameType | None) -> None:
        """Call the handler of SIGTERM, which a Trainer extends, but keep this signal's exit code."""
        self.signum = self.signum or signum
        handler: Any = signal.getsignal(signal.SIGTERM)
        if not callable(handler):  # SIG_DFL or SIG_IGN
            handler = self.handle
        handler(signal.SIGTERM, frame)

    @contextmanager
    def _handling(self, handlers: dict[signal.Signals, Any]) -> Iterator[None]:
        before = {each: signal.signal(each, handler) for each, handler in handlers.items()}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


STOP = StopSignals()
"""The handler of this process."""


def default_interrupts() -> None:
    """Let Ctrl-C end the process without a traceback while no command runs: during startup and at exit."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def delayed_signals() -> Iterator[None]:
    """Delay signals to the end of a ``with`` block in which an exception would abort the process.

    C++ code may call Python in a destructor, where an exception is ``std::terminate``: ``torch.save`` does so to finish
    its file after an interruption.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        yield
        return
    came: list[int] = []
    try:
        with ExitStack() as handlers:  # restores all of them, even if a signal raises
            for each in signal.valid_signals():
                if callable(handler := signal.getsignal(each)):
                    handlers.callback(signal.signal, each, handler)
                    signal.signal(each, lambda signum, frame: came.append(signum))
            yield
    finally:
        for signum in came:
            signal.raise_signal(signum)


@contextmanager
def _silent_in_del() -> Iterator[None]:
    """Hide Python's message for a :class:`Stopped` in a ``__del__``."""
    before = sys.unraisablehook

    def report(lost: sys.UnraisableHookArgs) -> None:
        if not isinstance(lost.exc_value, Stopped):
            before(lost)

    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = before


def stop_code(error: BaseException) -> int | None:
    """Exit code of a process that was stopped by a signal; None for other errors.

    Args:
        error: The exception that ended the command. After a signal it may be any exception: the same signal stops
            worker processes, and waiting for them fails.
    """
    if isinstance(error, Stopped):  # of this process, or of a child process
        return 128 + error.signum
    if STOP.signum is not None:
        return 128 + STOP.signum
    # Lightning raises SystemExit while it handles a KeyboardInterrupt.
    interrupt = error.__context__ if isinstance(error, SystemExit) else error
    if isinstance(interrupt, KeyboardInterrupt):
        return 128 + signal.SIGINT
    # Looked up, as importing Lightning takes seconds; without it there is no such exception.
    lightning: Any = sys.modules.get("lightning.pytorch.utilities.exceptions")
    return 128 + signal.SIGTERM if lightning and isinstance(error, lightning.SIGTERMException) else None
