"""Peak memory of steps within the backward pass: ``python benchmarks/fused_backward.py``.

SFT of a random model of SmolLM2-135M's shape on one short row and on one long one, by AdamW, SGD and AdaLomo, after the
backward pass and within it. Measured and estimated as ``memory.py`` does it: each case two steps in a process of its
own, the kernel's peak. The cases are run in turn, ``--rounds`` times, and the median counts. Some five minutes a round
on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from memory import COMMON, HEADER, SHAPES, SIZES, Case, Found, compare, rows, write_tokenizer

SHAPE = "SmolLM2-135M's shape"
SHAPES[SHAPE] = COMMON | {"vocab_size": 49152, "tie_word_embeddings": True}
SHAPES[SHAPE] |= dict(zip(SIZES, (576, 30, 9, 3, 1536), strict=True))
LENGTHS = 64, 512
CASES = [
    Case(SHAPE, tokens=tokens, optimizer=optimizer, fused=fused, clipped=clipped)
    for tokens in LENGTHS
    for optimizer, fused, clipped in (
        ("AdamW", False, False),
        ("AdamW", True, False),
        ("SGD", False, False),
        ("SGD", True, False),
        ("SGD", True, True),
        ("AdaLomo", False, False),
        ("AdaLomo", True, False),
    )
]


def main() -> None:
    """Measure every case, and print the table."""
    options = _options()
    found: dict[Case, list[Found]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(folder)
        for _ in range(options.rounds):
            for case in CASES:
                found[case].append(compare(case, folder))
                print(case.tokens, case.name, found[case][-1], flush=True)
    measurements: list[dict[str, Any]] = []
    for case, rounds in found.items():
        medians = {name: median(getattr(one, name) for one in rounds) for name in Found.__dataclass_fields__}
        peaks = [one.measured for one in rounds]
        measurements.append({**asdict(case), **medians, "spread": max(peaks) - min(peaks)})
    print("\n".join(["", *HEADER, *rows(measurements)]))
    if options.out:
        options.out.write_text(json.dumps(measurements, indent=2) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="times that each case is run (1)")
    parser.add_argument("--out", type=Path, help="JSON file for the measurements")
    return parser.parse_args()


if __name__ == "__main__":
    main()
