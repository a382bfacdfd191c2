"""Seconds until ``lion --help`` has answered and the package is imported: ``python benchmarks/startup.py``."""

from __future__ import annotations

import subprocess
import sys
import time

from measurements import Measurement, show

COMMAND = "python benchmarks/startup.py"
STARTS = {
    "start-up: `lion --help`": (["-m", "lion_lightning", "--help"], 2.5),
    "start-up: `import lion_lightning`": (["-c", "import lion_lightning"], 1.5),
}


def measure(rounds: int = 5) -> list[Measurement]:
    """Seconds of fresh processes; Python's own start is among them.

    Args:
        rounds: Starts of each.
    """
    return [
        Measurement(
            what, "s", [seconds(arguments) for _ in range(rounds)], most=most, command="python benchmarks/startup.py"
        )
        for what, (arguments, most) in STARTS.items()
    ]


def seconds(arguments: list[str]) -> float:
    """How long a process of Python takes.

    Args:
        arguments: Its command line.
    """
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    show(measure())
