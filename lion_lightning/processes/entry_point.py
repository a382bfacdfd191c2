"""Start and end of a process of this package: log, warnings, signals, exit codes, and errors as one line."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from typing_extensions import override

from lion_lightning.errors import explain, is_user_error
from lion_lightning.printing import PrintableFormatter, one_line
from lion_lightning.processes.stopping import STOP, stop_code

_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")

HIDDEN_WARNINGS = (
    ".*LeafSpec.*is deprecated",
    "LightningCLI's args parameter is intended",
    "Total length of `list` across ranks is zero",  # no validation data, as configured
    r"When using `Trainer\(accumulate_grad_batches != 1\)` and overriding",  # our training steps support it
    "You requested to overfit but enabled",  # our loaders are in order already
    r"Found \d+ module\(s\) in eval mode at the start of training",  # reference models
    r"Checkpoint directory .* exists and is not empty",  # so it is after every resume
    r"The number of training batches \(\d+\) is smaller than the logging interval",  # LogShortRuns lowers it
)
"""Warnings of Lightning that a user cannot act on: patterns of their beginnings."""

HIDDEN_MESSAGES = {
    "lightning.pytorch.utilities.rank_zero": (
        *("Tip:", "GPU available:", "TPU available:", "Automatic Mixed Precision (AMP)"),
        *("stopped: `max_epochs", "stopped: `max_steps"),  # the summary and the last line of progress tell it
    ),
    "lightning.fabric.utilities.seed": ("Seed set to",),
    "torch.distributed.tensor._redistribute": ("While redistributing from",),  # a norm over both dimensions of a mesh
}
"""Log messages of Lightning and torch of the same kind, and its advertisements: by logger, what they contain."""


def run_guarded(body: Callable[[], object], print_stop: bool = True) -> int:
    """Run the main function of a process.

    Errors that a user can fix are printed as one line; with ``LION_DEBUG=1`` they keep their traceback.

    Args:
        body: The main function; an int that it returns is the exit code.
        print_stop: Whether to print which signal stopped the process; not where its parent prints it.

    Returns:
        The exit code.
    """
    _prepare_process()
    try:
        with STOP.handle_signals():
            try:
                returned = body()
                STOP.raise_if_swallowed()
            finally:
                sys.stdout.flush()  # while errors are still caught, not at the interpreter's exit
    except BaseException as error:
        code = stop_code(error)
        if code is not None:
            if print_stop and not STOP.told_by_parent:
                print(f"lion: stopped by {signal.Signals(code - 128).name}", file=sys.stderr)
            return 0 if STOP.told_by_parent else code
        if isinstance(error, BrokenPipeError) and _reader_gone():
            return 128 + signal.SIGPIPE
        if os.environ.get("LION_DEBUG") or not isinstance(error, Exception) or not is_user_error(error):
            raise
        for each in _flattened(error):
            print(f"lion: error: {one_line(explain(each))}", file=sys.stderr)
        return 2
    return returned if isinstance(returned, int) else 0


def _prepare_process() -> None:
    """Make modules in the working folder importable for configs, and set up our log and warnings."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    handler = logging.StreamHandler()  # a new one each time: it binds sys.stderr when it is made
    handler.setFormatter(_LevelFormatter("%(message)s"))
    package = logging.getLogger("lion_lightning")
    package.handlers = [handler]
    package.setLevel(logging.INFO)
    for name, texts in HIDDEN_MESSAGES.items():
        logging.getLogger(name).addFilter(partial(_contains_none, texts))
    for message in HIDDEN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    if not sys.stderr.isatty():
        # Read when transformers and tqdm are imported: no bars of loading and saving weights, few updates of others.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_MININTERVAL", "2")


def format_own_warnings() -> None:
    """Give warnings of this package the form ``warning: text``, without file and line; others stay as they are.

    To be called once Lightning is imported, which sets its own format.
    """
    usual = warnings.formatwarning

    def formatted(message: Warning | str, category: type[Warning], filename: str, *place: Any, **options: Any) -> str:
        if os.environ.get("LION_DEBUG") or not filename.startswith(_PACKAGE):
            return usual(message, category, filename, *place, **options)
        return f"warning: {one_line(str(message))}\n"

    if usual.__module__ != __name__:
        warnings.formatwarning = formatted


class _LevelFormatter(PrintableFormatter):
    """Writes ``warning: `` before warnings."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return "warning: " * (record.levelno >= logging.WARNING) + super().format(record)


def _contains_none(texts: Sequence[str], record: logging.LogRecord) -> bool:
    return not any(text in str(record.msg) for text in texts)


def _reader_gone() -> bool:
    """Return whether stdout is a pipe without a reader, as in ``lion inspect ... | head``, and redirect it if so."""
    try:
        stdout = sys.stdout.fileno()
    except (OSError, ValueError):  # replaced by an object without a file descriptor
        return False
    poll = select.poll()
    poll.register(stdout, 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)  # the interpreter flushes it once more at exit
    return gone


def _flattened(error: Exception) -> Iterator[Exception]:
    """The errors of nested exception groups, each of which gets a line."""
    if isinstance(error, ExceptionGroup):
        for each in error.exceptions:
            yield from _flattened(each)
    else:
        yield error
