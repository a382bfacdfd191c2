"""Train the same rows with the same weights and settings on two sides, and compare every step.

    python -m benchmarks.oracle [--only SFT DPO] [--steps 20] [--page docs/oracle.md] [--results FILE.json]

The other side is a trainer of TRL's or a loop by hand. A difference is named with the line of code that makes it, and
shown to be the only one: with it taken away both sides agree. Needs benchmarks/oracle/requirements.txt (`make oracle`).
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.oracle.cases import cases
from benchmarks.oracle.cases.case import Case, Run
from benchmarks.oracle.comparison import TOLERANCE, Settings, Step
from benchmarks.oracle.report import HEADER, Row, merged, read, save, table
from benchmarks.oracle.rows import Prepared, prepare

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other benchmarks are scripts, and no package
from results import machine, put_lines


def compare(prepared: Prepared, chosen: Iterable[Case], steps: int) -> Iterator[Row]:
    """Run cases, one after the other; what our side has done already is not done again.

    Args:
        prepared: Rows and models.
        chosen: The cases.
        steps: Optimizer steps of each.
    """
    known: dict[tuple[Run, Settings], list[Step]] = {}
    for case in chosen:
        settings = replace(case.settings, steps=steps)
        own = case.ours, replace(settings, attention="eager")  # of the models that are not packed: ours does not ask
        if own not in known:
            known[own] = case.ours(prepared, settings)
        yield Row.of(case, known[own], case.theirs(prepared, settings))


def quiet() -> None:
    """Keep bars and warnings of other libraries out of the table."""
    import datasets
    import transformers

    os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "TQDM_DISABLE": "1"}
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore")
    from benchmarks.oracle import theirs  # noqa: F401

    gc.freeze()  # TRL's trainers collect garbage often, which takes half a second with all that is imported


def main() -> int:
    """Command line; the exit status is 1 where a case is not as it is said to be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="words: renew what has one of them; the rest is kept from --results")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--page", type=Path, help="a page of the docs to write the table into")
    parser.add_argument("--results", type=Path, help="a JSON file to write every step into")
    options = parser.parse_args()
    every = [one for case in cases() for one in case.with_proofs()]
    chosen = [case for case in every if not options.only or case.has(options.only)]
    known = read(options.results) if options.only and options.results else []
    quiet()
    print(*HEADER, sep="\n")
    start, new = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for row in compare(prepare(Path(folder), num_hidden_layers=2), chosen, options.steps):
            print(row.line(), flush=True)
            new.append(row)
    minutes = (time.monotonic() - start) / 60
    print(f"{len(new)} comparisons in {minutes:.1f} minutes; tolerance {TOLERANCE:g}")
    rows = merged(known, new, [(case.objective, case.other) for case in every])
    if options.results:
        save(options.results, rows, machine=machine())
    if options.page:
        put_lines(options.page, "oracle", table(rows))
    return 0 if all(row.expected for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
