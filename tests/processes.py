"""Processes that start at once: each is forked from one in which nothing happened but the imports that it needs.

A process that is spawned imports torch, Lightning and transformers first, which takes ten seconds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import chdir
from functools import cache
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@cache
def forking() -> ForkServerContext:
    """The context whose processes are forked; it starts the process that they come from."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    with chdir(ROOT):  # where it finds `tests`
        forkserver.ensure_running()
    return context


def start(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Start a process that calls a function; its exit code is what the function returns.

    Args:
        function: Importable by name.
        arguments: Passed on.
    """
    process = forking().Process(target=_run, args=(dict(os.environ), function, arguments))
    process.start()
    return process


def _run(environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    set_environment(environment)
    sys.exit(function(*arguments))


def set_environment(environment: dict[str, str]) -> None:
    """Give a forked process the environment of the test that started it; it has that of the first such test."""
    os.environ.clear()
    os.environ.update(environment)
