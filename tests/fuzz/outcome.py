"""What came of a case, and the rules that it has to keep.

Exit code 0 or 2; after a 2 one line of error that names the key, the row or the file; no traceback;
no run over its time.
"""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType

LIMIT = 30.0
"""Seconds that a case may take."""


@dataclass
class Outcome:
    """How a case ended: ``taken``, ``refused``, or broken, with the rules that it broke."""

    code: int | None
    error: str = ""
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """One word for it."""
        return "broken" if self.faults else "refused" if self.code else "taken"


class _OverTimeError(BaseException):
    """The case ran over its time."""


def outcome(call: Callable[[], int], names: tuple[str, ...]) -> Outcome:
    """Run a case and check the rules.

    Args:
        call: Returns an exit code, after printing its error line to stderr.
        names: Words of which an error has to name at least one; empty where any line will do.
    """
    err, out = io.StringIO(), io.StringIO()
    began, code, faults = time.monotonic(), None, []
    try:
        with _limited(), _nothing_typed(), contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
            code = call()
    except _OverTimeError:
        faults.append(f"took over {LIMIT:.0f} s")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:  # that none gets out is what is tested
        place = traceback.extract_tb(error.__traceback__)[-1]
        faults.append(f"traceback: {type(error).__name__}: {str(error)[:300]} ({place.filename}:{place.lineno})")
    lines = [line for line in err.getvalue().splitlines() if "error: " in line]
    found = Outcome(code, lines[0] if lines else "", time.monotonic() - began, faults)
    if not faults:
        found.faults = list(_broken_rules(found, lines, names))
    return found


def _broken_rules(found: Outcome, lines: list[str], names: tuple[str, ...]) -> Iterator[str]:
    if found.code not in (0, 2):
        yield f"exit code {found.code}"
    if found.code == 2 and len(lines) != 1:
        yield f"{len(lines)} lines of error"
    if found.code == 2 and names and not any(name in found.error for name in names):
        yield f"names none of {', '.join(names)}"
    if len(found.error) > 1000:
        yield f"an error of {len(found.error)} characters"


@contextlib.contextmanager
def _nothing_typed() -> Iterator[None]:
    """For commands that read what a person types: the end of it."""
    before, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = before


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise _OverTimeError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
