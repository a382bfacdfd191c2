"""Stop signals: each has its exit code, and none cuts an optimizer step in two."""

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
"""Signals that follow the first one sooner are the same stop: Ctrl-C reaches a stage from the terminal, and again from
the `lion run` that passes it on."""


class Stopped(SystemExit):
    """The process was told to stop; its exit code is 128 plus the signal's number, as a shell has it.

    Args:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signal.Signals(signum)


class StopSignals:
    """What this process does when it is told to stop.

    It leaves what it is doing at once, by an exception that cleans up on its way. Within a training step it waits: a
    checkpoint that an exception's handler saves must not hold half a step. A second signal doesn't wait for the step.

    Attributes:
        signum: The first signal that came; None for none.
        in_step: Whether a training step is under way, whose trainer looks for a stop at the end of the step.
        told_by_parent: Whether this is a rank that another one started, which tells the exit code for both; that one
            takes any code but 0 for a crash, and kills the other ranks while they still save.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.in_step = self.told_by_parent = False
        self._since: float | None = None

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGHUP; a signal that is ignored (`nohup`) or handled by somebody else stays so.

        Ctrl-C is a KeyboardInterrupt here, also in a process that :func:`default_interrupts` was called in.
        """
        if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) == self.handle:
            yield
            return
        self.__init__()  # type: ignore[misc]
        interrupt: Any = signal.default_int_handler
        handlers = {signal.SIGTERM: self.handle, signal.SIGHUP: self.as_sigterm, signal.SIGINT: interrupt}
        free = {each: handler for each, handler in handlers.items() if signal.getsignal(each) == signal.SIG_DFL}
        with _lost_in_silence(), self._handling(free):
            yield

    @contextmanager
    def handle_interrupts(self) -> Iterator[None]:
        """Handle Ctrl-C in the same way; elsewhere it stays a KeyboardInterrupt, which a chat can catch."""
        free = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ours = free and threading.current_thread() is threading.main_thread()
        with self._handling({signal.SIGINT: self.as_sigterm} if ours else {}):
            yield

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Stop now, or leave it to the step's end.

        Args:
            signum: The signal.
            frame: Where it came; not used.

        Raises:
            Stopped: Now.
        """
        now, first = time.monotonic(), self._since is None
        self.signum = self.signum or signum
        self._since = now if self._since is None else self._since
        if now - self._since < REPEAT_SECONDS and (self.in_step or not first):
            return
        raise Stopped(self.signum)

    def raise_if_swallowed(self) -> None:
        """Stop now, where the exception of an earlier signal came to nothing: ``__del__`` and some imports swallow any.

        Raises:
            Stopped: No step is under way, so the signal has been raised, and yet the process goes on.
        """
        if self.signum is not None and not self.in_step:
            raise Stopped(self.signum)

    def as_sigterm(self, signum: int, frame: FrameType | None) -> None:
        """Do what SIGTERM does, whose handler a Trainer extends, but with this signal's exit code.

        Args:
            signum: The signal.
            frame: Where it came.
        """
        self.signum = self.signum or signum
        handler: Any = signal.getsignal(signal.SIGTERM)
        (handler if callable(handler) else self.handle)(signal.SIGTERM, frame)

    @contextmanager
    def _handling(self, handlers: dict[signal.Signals, Any]) -> Iterator[None]:
        before = {each: signal.signal(each, handler) for each, handler in handlers.items()}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


STOP = StopSignals()
"""Of this process: signals have one handler."""


def default_interrupts() -> None:
    """Let Ctrl-C end this process without a traceback while no command runs: as it starts, and as it ends."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def delayed_signals() -> Iterator[None]:
    """Let signals wait for the end of a block, in which an exception would end the process by an abort.

    C++ code that calls Python back may do so in a destructor: ``torch.save`` writes the end of a file there if it was
    cut short, and what is raised then, even that the file is closed, is ``std::terminate``.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are handled in that one alone
        yield
        return
    came: list[int] = []
    try:
        with ExitStack() as handlers:  # gives all of them back, even if a signal raises meanwhile
            for each in signal.valid_signals():
                if callable(handler := signal.getsignal(each)):
                    handlers.callback(signal.signal, each, handler)
                    signal.signal(each, lambda signum, frame: came.append(signum))
            yield
    finally:
        for signum in came:
            signal.raise_signal(signum)


@contextmanager
def _lost_in_silence() -> Iterator[None]:
    """Print nothing of a stop that came within a ``__del__``, where Python tells of any exception and drops it."""
    before = sys.unraisablehook

    def tell(lost: sys.UnraisableHookArgs) -> None:
        if not isinstance(lost.exc_value, Stopped):
            before(lost)

    sys.unraisablehook = tell
    try:
        yield
    finally:
        sys.unraisablehook = before


def stop_code(error: BaseException) -> int | None:
    """Exit code of a process that a signal has stopped; None where no signal is the cause.

    Args:
        error: What ended the command. After a signal that may be anything: workers are stopped by the same signal, and
            whoever waits for them fails.
    """
    if isinstance(error, Stopped):  # of this process, or passed on from one that it waited for
        return 128 + error.signum
    if STOP.signum is not None:
        return 128 + STOP.signum
    if isinstance(error, KeyboardInterrupt) or _exit_after_interrupt(error):
        return 128 + signal.SIGINT
    lightning: Any = sys.modules.get("lightning.pytorch.utilities.exceptions")
    return 128 + signal.SIGTERM if lightning and isinstance(error, lightning.SIGTERMException) else None


def _exit_after_interrupt(error: BaseException) -> bool:
    """Lightning turns Ctrl-C into an exit with code 1."""
    return isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
