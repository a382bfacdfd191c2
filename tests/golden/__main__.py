"""``python -m tests.golden``: make the recorded runs and compare them bit for bit; ``--write`` records them."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests import conftest  # noqa: F401  (threads and caches as in the tests)
from tests.golden.runs import RUNS, Record, Runs

RECORD = Path(__file__).with_name("record.json")


def main() -> int:
    """Compare or write; 0 if all is equal."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {RECORD.name} instead of comparing with it")
    parser.add_argument("--record", type=Path, default=RECORD, help="another record, of this machine")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        made = {name: run(runs) for name, run in RUNS.items()}
    if options.write:
        options.record.write_text(json.dumps(made, indent=1) + "\n")
        return 0
    recorded = json.loads(options.record.read_text())
    return max(_compare(name, made[name], recorded[name]) for name in RUNS)


def _compare(name: str, made: Record, recorded: Record) -> int:
    wrong = [key for key in recorded if made[key] != recorded[key]]
    steps = len(made["loss"])
    print(
        f"{name}: {' and '.join(wrong)} differ" if wrong else f"{name}: {steps} steps and the final weights are equal"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
