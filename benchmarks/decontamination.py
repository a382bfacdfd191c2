"""Rows a second of decontamination, and its memory: ``python benchmarks/decontamination.py [ROWS]``.

Rows of 10 to 80 made-up words against 5,000 benchmark items of as many; one row in a hundred has an item's words.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lion_lightning.data.decontamination import Decontamination
from lion_lightning.data.document_filters.candidates import Candidates, ReadExample
from lion_lightning.data.formats.sft import recognize
from lion_lightning.data.sources.source import Source

ITEMS, WORDS = 5_000, 20_000


def write(path: Path, count: int, seed: int, items: list[str]) -> list[str]:
    """Write rows, one in a hundred with an item's words in it, and return their questions."""
    draw, written = random.Random(seed), []
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            words = [f"w{draw.randrange(WORDS)}" for _ in range(draw.randint(10, 80))]
            question = f"{' '.join(words[:3])} {draw.choice(items)}" if items and number % 100 == 0 else " ".join(words)
            file.write(json.dumps({"question": question, "answer": "x"}) + "\n")
            written += [] if items else [question]
    return written


def examples(source: Source) -> Iterator[ReadExample]:
    """All examples of a source."""
    rows = source.open()
    for row in rows.take(np.arange(len(rows))):
        yield from source.examples(row, lambda values, columns: [recognize(values, columns)])


def peak_mib() -> float:
    """Most memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux


def main(count: int) -> None:
    """Print seconds of this process's CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        items = write(Path(folder, "test.jsonl"), ITEMS, 0, [])
        write(Path(folder, "train.jsonl"), count, 1, items)
        source = Source(str(Path(folder, "train.jsonl")))
        started = time.process_time()
        rule = Decontamination([Source(str(Path(folder, "test.jsonl")))])
        rule.identity()
        print(f"read {ITEMS:,} items: {time.process_time() - started:.1f} s")
        started = time.process_time()
        for _ in examples(source):
            pass
        reading, before = time.process_time() - started, peak_mib()
        digests = np.zeros((count, 2), np.uint64)
        candidates = Candidates(source, digests, lambda: examples(source), lambda rows: list(map(str, rows)))
        started = time.process_time()
        report = rule.leave_out(candidates).report["benchmarks"][0]
        seconds = time.process_time() - started
        print(f"read {count:,} rows: {reading:.1f} s, {count / reading:,.0f} rows/s")
        print(f"read and compare them: {seconds:.1f} s, {count / seconds:,.0f} rows/s, +{peak_mib() - before:.0f} MiB")
        print(f"{report['rows']:,} rows left out, {report['items_found']:,} items found")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
