"""``python -m tests.fuzz``: run it, and print what broke the rules."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.fuzz.outcome import outcome
from tests.fuzz.targets import TARGETS, cases
from tests.fuzz.workspace import Workspace


def fuzz(
    seconds: float, seed: int, only: str | None = None, most: Mapping[str, int] | None = None
) -> tuple[str, list[str]]:
    """Run cases of every target for its share of the time.

    Args:
        seconds: In all.
        seed: Of the cases; how many of them are reached depends on the machine.
        only: One target, for all of the time.
        most: Cases of each target at most, so that machines of all speeds end alike; None for no end but the time.

    Returns:
        A table of counts, and a paragraph for each case that broke a rule.
    """
    space = Workspace(Path.cwd())
    counts: dict[str, Counter[str]] = {}
    broken = []
    for name, (share, _) in TARGETS.items():
        if only not in (None, name):
            continue
        counts[name] = Counter()
        until = time.monotonic() + seconds * (1.0 if only else share)
        for number, (what, call, names) in enumerate(cases(space, name, seed)):
            if time.monotonic() > until or number == (most or {}).get(name):
                break
            found = outcome(call, names)
            counts[name][found.kind] += 1
            if found.faults:
                broken.append(f"--- {name} {number}: {'; '.join(found.faults)}\n{found.error}\n{what}")
    return "\n".join(f"{name}: {dict(sorted(count.items()))}" for name, count in counts.items()), broken


def main() -> int:
    """Run it in a temporary folder."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=TARGETS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["LION_CACHE"] = str(Path(folder) / "lion")
        table, broken = fuzz(options.seconds, options.seed, options.only)
    print("\n".join([*broken, table]).encode("utf-8", "replace").decode("utf-8"))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
