"""Time, peak memory and efficiency of packing a million chat lengths: ``python benchmarks/packing.py``."""

from __future__ import annotations

import resource
import time

import numpy as np

from lion_lightning.data.packing import BestFit, Packing, Unpacked, Wrapped

DOCUMENTS = 1_000_000
CAPACITY = 8192
PACKINGS: tuple[Packing, ...] = (BestFit(), Wrapped(), Unpacked())


def main() -> None:
    """Print one line a packing; the first line's memory is the growth over what the process had before it."""
    lengths = np.random.default_rng(0).lognormal(5.5, 1.0, DOCUMENTS).astype(np.int64).clip(1, CAPACITY)
    print(f"{DOCUMENTS:,} documents, {lengths.sum():,} tokens, rows of {CAPACITY}")
    for packing in PACKINGS:
        memory, started = _peak_mib(), time.perf_counter()
        rows = packing.rows(lengths, CAPACITY, np.random.default_rng(0))
        seconds, grown = time.perf_counter() - started, _peak_mib() - memory
        name, share = type(packing).__name__, rows.efficiency(CAPACITY)
        print(f"{name:9} {seconds:5.1f} s  +{grown:4.0f} MiB peak  {len(rows):>9,} rows  {share:.5f} full")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux


if __name__ == "__main__":
    main()
