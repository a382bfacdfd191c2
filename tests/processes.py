"""Processes that start at once: each is forked from one in which nothing happened but the imports that it needs.

A process that is spawned imports torch, Lightning and transformers first, which takes ten seconds.
"""

from __future__ import annotations

import os
from contextlib import chdir
from functools import cache
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path

ROOT = Path(__file__).parents[1]


@cache
def forking() -> ForkServerContext:
    """The context whose processes are forked; it starts the process that they come from."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    with chdir(ROOT):  # where it finds `tests`
        forkserver.ensure_running()
    return context


def set_environment(environment: dict[str, str]) -> None:
    """Give a forked process the environment of the test that started it; it has that of the first such test."""
    os.environ.clear()
    os.environ.update(environment)
