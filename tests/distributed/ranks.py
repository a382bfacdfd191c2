"""Run a function in several processes that talk over gloo, and bring back what each returned."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

from tests.processes import forking, set_environment


def run_ranks(function: Callable[..., Any], folder: Path, *arguments: Any, world: int = 2) -> list[Any]:
    """Call ``function(rank, world, *arguments)`` on every rank; results, in order of rank.

    Args:
        function: Importable by name. It, or the Trainer that it makes, starts the process group.
        folder: For the results.
        arguments: Passed on.
        world: Number of processes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    forking()
    given = (function, world, port, folder, arguments, dict(os.environ))
    start_processes(_rank, given, nprocs=world, start_method="forkserver")  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(
    rank: int,
    function: Callable[..., Any],
    world: int,
    port: int,
    folder: Path,
    arguments: tuple[Any, ...],
    environment: dict[str, str],
) -> None:
    set_environment(environment)
    # What a cluster's launcher sets, so that Lightning starts no processes of its own.
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    torch.set_num_threads(1)
    result = function(rank, world, *arguments)
    torch.save(result, folder / f"{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # Sharded models keep gloo's threads alive past the group. One that asks for the GIL while the interpreter goes down
    # ends the process with SIGABRT, so the interpreter isn't taken down: all that the test wants is on the disk.
    os._exit(0)
