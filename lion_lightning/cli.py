"""The ``lion`` command: which commands there are, and errors of one line.

Nothing here imports torch or Lightning before a command is known to need them, so that ``lion --help``, a mistyped
command and ``lion report`` answer at once.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module

from lion_lightning import __version__
from lion_lightning.printing import PrintableFormatter, one_line
from lion_lightning.processes.stopping import STOP, end_by_interrupts, stop_code

TRAINING = {
    "fit": "train, and validate meanwhile",
    "validate": "one pass over the validation rows",
    "test": "one pass over the test rows, to be made once",
}
"""Commands that a config drives: those of LightningCLI that an alignment module has steps for."""

COMMANDS = {
    "run": "run the stages of a pipeline file, one from the other's export",
    "report": "draw what a run did, from its logs on disk",
    "evaluate": "losses, accuracies and win rates of a trained model",
    "chat": "talk to a trained model",
    "plan": "estimate memory per GPU and time per step of a config, under each strategy, without any GPU",
    "inspect": "show what a config's mask, packing and filters do to its data, before any training",
    "export": "write a checkpoint as a Hugging Face folder",
    "rounds": "print and draw what happened in the rounds of on-policy sampling",
    "answers": "answer the questions of AlpacaEval, Arena-Hard or MT-Bench, in those tools' formats",
    "demo": "write a small made-up task to try everything on: data, tokenizer and model config",
}
"""Further commands: folders of ``lion_lightning.tools``, each with a module ``main``, and what they are for."""

_FOLDERS = {"run": "pipeline"}  # where a folder has another name than its command

NOT_FOR_USERS = (
    ".*LeafSpec.*is deprecated",
    "LightningCLI's args parameter is intended",
    "Total length of `list` across ranks is zero",  # there is no validation, as asked
    r"When using `Trainer\(accumulate_grad_batches != 1\)` and overriding",  # our steps are made for that
    "You requested to overfit but enabled",  # our loaders have done what it says
    r"Found \d+ module\(s\) in eval mode at the start of training",  # references
)
"""Warnings of Lightning's that nobody who runs a config can act on, as patterns of their beginnings."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: Arguments without the program's name; None for the process's own.

    Returns:
        0; 2 after an error that the user can fix; 128 plus its number after a signal: 130 for Ctrl-C, 143 for SIGTERM.
    """
    if argv is None:  # this process is ours
        end_by_interrupts()
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    return guarded(lambda: _command(name, arguments))


def help_text() -> str:
    """What ``lion --help`` prints."""
    return "\n".join(
        [
            "usage: lion COMMAND ...  (lion COMMAND --help for its arguments, lion --version)",
            "",
            "Align language models with PyTorch Lightning.",
            "",
            "driven by a config, as in `lion fit -c configs/sft.yaml`:",
            *_listed(TRAINING),
            "",
            "further commands:",
            *_listed(COMMANDS),
        ]
    )


def _listed(commands: Mapping[str, str]) -> list[str]:
    return [f"    {name:<10}  {what}" for name, what in commands.items()]


def guarded(body: Callable[[], object]) -> int:
    """Run what a process is for; an error that a person can fix is printed as one line, unless ``LION_DEBUG=1``.

    Args:
        body: What it is for; a number that it returns is the exit code.

    Returns:
        The exit code.
    """
    _prepare_process()
    try:
        with STOP.listening(), _flushed():
            returned = body()
            STOP.raise_if_lost()
    except BaseException as error:
        code = stop_code(error)
        if code is not None:
            return _stopped(code)
        if isinstance(error, BrokenPipeError) and _reader_gone():
            return 128 + signal.SIGPIPE
        if os.environ.get("LION_DEBUG") or not isinstance(error, Exception) or not _can_be_mended(error):
            raise
        for each in _single(error):
            line = import_module("lion_lightning.errors").explain(each)
            print(f"lion: error: {one_line(line)}", file=sys.stderr)
        return 2
    return returned if isinstance(returned, int) else 0


def _command(name: str, arguments: list[str]) -> None:
    if name in ("-h", "--help"):
        print(help_text())
    elif name == "--version":
        print(f"lion_lightning {__version__}")
    elif name in COMMANDS:
        import_module(f"lion_lightning.tools.{_FOLDERS.get(name, name)}.main").main(arguments[1:])
    else:
        _refuse_unknown_command(name)
        with STOP.interrupts():
            import_module("lion_lightning.tools.train.lightning_cli").build_cli(arguments)


@contextmanager
def _flushed() -> Iterator[None]:
    """Write out what was printed while errors are looked for: the interpreter would do it when it is too late."""
    try:
        yield
    finally:
        sys.stdout.flush()


def _stopped(code: int) -> int:
    if STOP.told_by_parent:
        return 0
    print(f"lion: stopped by {signal.Signals(code - 128).name}", file=sys.stderr)
    return code


def _reader_gone() -> bool:
    """Whether the output goes to a program that reads no more, as in ``lion inspect ... | head``; the rest is lost."""
    try:
        place = sys.stdout.fileno()
    except (OSError, ValueError):  # no file of the system's
        return False
    poll = select.poll()
    poll.register(place, 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), place)  # the interpreter flushes at its end
    return gone


def _refuse_unknown_command(name: str) -> None:
    known = [*TRAINING, *COMMANDS]
    if not name.startswith("-") and name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}" if close else ""
        raise ValueError(f"unknown command {name!r}{hint}; the commands are {', '.join(known)}")


def _single(error: Exception) -> Iterator[Exception]:
    """The errors of a group, of which each gets a line."""
    if isinstance(error, ExceptionGroup):
        for each in error.exceptions:
            yield from _single(each)
    else:
        yield error


def _can_be_mended(error: Exception) -> bool:
    if isinstance(error, ExceptionGroup):
        return all(map(_can_be_mended, error.exceptions))
    if isinstance(error, (ValueError, ModuleNotFoundError, OSError)):
        return True
    from jsonargparse import ArgumentError
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    if isinstance(error, (MisconfigurationException, ArgumentError)):
        return True
    from lion_lightning.errors import checkpoint_being_restored, is_of_named_class

    return checkpoint_being_restored(error) is not None or is_of_named_class(error)


def _prepare_process() -> None:
    """Let configs name modules of the working folder, show our log, and hush what nobody can act on."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    handler = logging.StreamHandler()  # a new one each time: it holds on to the stderr of its making
    handler.setFormatter(PrintableFormatter("%(message)s"))
    package = logging.getLogger("lion_lightning")
    package.handlers = [handler]
    package.setLevel(logging.INFO)
    # Advertisements among Lightning's messages.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in str(record.msg))
    for message in NOT_FOR_USERS:
        warnings.filterwarnings("ignore", message=message)
