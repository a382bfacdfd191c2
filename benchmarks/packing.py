"""Time, efficiency and memory of packing a million chat lengths: ``python benchmarks/packing.py``."""

from __future__ import annotations

import resource
import time

import numpy as np
from measurements import Measurement, show

from lion_lightning.data.packing.best_fit import BestFit, Packing, Unpacked, Wrapped

DOCUMENTS = 1_000_000
CAPACITY = 8192
PACKINGS: tuple[Packing, ...] = (BestFit(), Wrapped(), Unpacked())
COMMAND = "python benchmarks/packing.py"


def measure(rounds: int = 5) -> list[Measurement]:
    """Seconds and efficiency of the default packing.

    Args:
        rounds: Times that it packs, each with an order of its own.
    """
    found = [packed(BestFit(), seed) for seed in range(rounds)]
    what = f"packing {DOCUMENTS:,} lengths into rows of {CAPACITY:,}"
    return [
        Measurement(what, "s", [seconds for seconds, *_ in found], most=10, command=COMMAND),
        Measurement(f"{what}: efficiency", "share", [share for _, _, share in found], least=0.99, command=COMMAND),
    ]


def packed(packing: Packing, seed: int = 0) -> tuple[float, int, float]:
    """Seconds, rows, and the share of them that is full.

    Args:
        packing: What packs.
        seed: Of the lengths and of the order.
    """
    generator = np.random.default_rng(seed)
    lengths = generator.lognormal(5.5, 1.0, DOCUMENTS).astype(np.int64).clip(1, CAPACITY)
    started = time.perf_counter()
    rows = packing.rows(lengths, CAPACITY, generator)
    return time.perf_counter() - started, len(rows), rows.efficiency(CAPACITY)


def main() -> None:
    """Print a line a packing, the first line's memory being the growth over what the process had; then the table."""
    for packing in PACKINGS:
        memory = _peak_mib()
        seconds, rows, share = packed(packing)
        grown = _peak_mib() - memory
        print(f"{type(packing).__name__:9} {seconds:5.1f} s  +{grown:4.0f} MiB peak  {rows:>9,} rows  {share:.5f} full")
    show(measure())


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux


if __name__ == "__main__":
    main()
