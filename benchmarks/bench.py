"""The whole suite on a CPU, ours against what one would use instead: ``python benchmarks/bench.py`` (``make bench``).

Each measure is a script that also runs alone; each measurement is a ratio from one run, or stands for itself.
The table goes to docs/performance.md, every round to benchmarks/results/cpu.json. A measure that fails is named at the
end and the others go on; a target that is missed is no failure. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import overhead
import packing
import preparation
import rollout
import startup
import training
from measurements import Measurement, show
from results import machine, put_table, save

HERE = Path(__file__).parent
Measure = Callable[[int], list[Measurement]]
MEASURES: dict[str, Measure] = {
    "training": training.measure,
    "overhead": overhead.measure,
    "rollout": rollout.measure,
    "preparation": preparation.measure,
    "packing": packing.measure,
    "startup": startup.measure,
}


@dataclass
class Found:
    """What a run of the suite has found so far."""

    measurements: list[Measurement] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def perform(names: Iterable[str], rounds: int) -> Found:
    """Take the measures in turn.

    Args:
        names: Which.
        rounds: Of each side.
    """
    found = Found()
    for name in names:
        print(f"{name} ...", end=" ", flush=True)
        start = time.perf_counter()
        try:
            found.measurements += MEASURES[name](rounds)
        except (Exception, SystemExit) as error:
            found.errors[name] = f"{type(error).__name__}: {error}"[-2000:]
            traceback.print_exc()
        found.seconds[name] = round(time.perf_counter() - start, 1)
        print(f"{found.seconds[name]:.0f} s", flush=True)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(MEASURES), choices=list(MEASURES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu.json")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "performance.md")
    options = parser.parse_args()
    found = perform(options.only, options.rounds)
    about = machine() | {"measured in": f"{sum(found.seconds.values()):.0f} s, {options.rounds} rounds"}
    save(options.out, found.measurements, machine=about, seconds=found.seconds, errors=found.errors)
    if set(options.only) == set(MEASURES) and not found.errors:  # a part would take the others' lines off the page
        put_table(options.page, "bench", found.measurements, [f"{', '.join(f'{k} {v}' for k, v in about.items())}."])
    show(found.measurements)
    print(f"every round: {options.out}")
    if found.errors:
        raise SystemExit("\n".join(f"{name} failed: {error[-300:]}" for name, error in found.errors.items()))


if __name__ == "__main__":
    main()
