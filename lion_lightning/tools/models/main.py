"""``lion models``: a table of what runs of each type of causal LM of the installed transformers."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers

from lion_lightning.processes.command_line import CommandParser
from lion_lightning.tools.models.check import ModelCheck, check_model
from lion_lightning.tools.models.page import page, summary
from lion_lightning.tools.models.tiny import model_types

SECONDS = 120
"""Longest time for a type; some would run for hours at any size."""


def main(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: Command line after ``lion models``.

    Raises:
        ValueError: A type is unknown to transformers.
    """
    parser = CommandParser(
        prog="lion models",
        description="Build each type of causal LM of the installed transformers at a tiny size, and check packed rows, "
        "shared prompts, a DPO step, LoRA, and export. All types take about ten minutes on two cores.",
        epilog="Example: lion models qwen3 llama gemma2",
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model_type, e.g. qwen3 (default: all)")
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="types at once (default: one per core)")
    options = parser.parse_args(arguments)
    known = model_types()
    for name in options.types:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "; `lion models` without a type checks them all"
            raise ValueError(f"transformers {transformers.__version__} knows no type {name!r} of causal LM{hint}")
    started = time.monotonic()
    checks = []
    wanted = options.types or known
    for check in checked(wanted, options.jobs):
        checks.append(check)
        spent = time.monotonic() - started
        left = spent / len(checks) * (len(wanted) - len(checks))
        print(f"[{len(checks)}/{len(wanted)}, {left / 60:.0f} min left] {summary(check)}", flush=True)
    checks.sort(key=lambda check: check.model_type)
    text = page(checks, (time.monotonic() - started) / 60)
    print(f"\n{text}" if options.out is None else f"\n{text.split(chr(10) * 2)[1]}")
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


def checked(types: Sequence[str], jobs: int = 1) -> Iterator[ModelCheck]:
    """Check types, each in a separate process, which may hang or crash.

    Yields:
        The result of each, in the order in which they are done.
    """
    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(_in_process, name) for name in types]):
            yield done.result()


def _in_process(model_type: str) -> ModelCheck:
    context = multiprocessing.get_context("fork")  # no import of torch and transformers for each type
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_check, args=(model_type, sender), daemon=True)
    process.start()
    sender.close()  # so that a crash ends the pipe
    try:
        if receiver.poll(SECONDS):
            check: ModelCheck = receiver.recv()
            return check
        return ModelCheck(model_type, failed="build", reason=f"not done after {SECONDS} s")
    except EOFError:
        process.join()
        return ModelCheck(model_type, failed="build", reason=f"its process ended with exit code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _send_check(model_type: str, sender: multiprocessing.connection.Connection) -> None:
    # Warnings of a hundred models that nobody trains say nothing to anybody.
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for library in ("transformers", "lightning.pytorch", "peft"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    logging.getLogger("lion_lightning").propagate = False
    logging.getLogger("lion_lightning").handlers = [logging.NullHandler()]
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - to the end of the process
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        sender.send(check_model(model_type, Path(folder)))
