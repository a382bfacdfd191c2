"""Ranked, single and own answers and the reward stage on the CPU: ours against TRL, and against an earlier commit.

    python benchmarks/trees.py ranked | answers | grpo | groups | before [--rounds N]

Each table is one command of some minutes; leave the machine alone meanwhile. It is printed, written to
``benchmarks/results/TABLE.json`` with every round, and put into docs/performance.md.

ranked: all pairs of four answers (prompts of 30 to 300 tokens, answers of 100 to 400, at random from a fixed seed),
against TRL's DPOTrainer. answers: labeled single answers against KTOTrainer; pairs, and all pairs of four answers,
against RewardTrainer. grpo, groups: the policy's own answers against GRPOTrainer, see ``grpo_tables.py``. before: the
library as it is against its commit ``--commit``, which trains from an archive of its files: all pairs of five answers,
plain pairs, and the reference pass.

Both sides get the same weights, token ids, steps and AdamW, and (but for GRPO) reference log-probs that were computed
ahead; nothing is evaluated. Each is a process of its own with two threads that takes its turn. Of TRL's micro-batches
the fastest is kept, by a trial in the same run. (``padding_free`` is switched off for DPO in TRL 1.16; the other
trainers have none.) The first turn warms up, and memory is counted above what the libraries take.
"""

from __future__ import annotations

import argparse
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from batches import Item
from grpo_tables import GROUPS, GRPO, answers, by_size, through_the_model
from measurements import Measurement, show
from operations import bound
from paired_benchmark import OURS, PEER, PairedBenchmark, Stage, fastest_precision, make_model
from results import machine, put_table, save
from training import SIX_LAYERS

HERE = Path(__file__).parent
COMMIT = "0ee86ff"
"""The last one whose pairs were three segments each, whatever they shared."""
SAME = 1.03
"""The most that a ratio of times may be where nothing shall be slower."""
ROUNDS = {"ranked": 5, "answers": 5, "grpo": 5, "groups": 3, "before": 11}
LENGTHS = [[30, 300], [100, 400]]
"""The least and the most tokens of a prompt, and of an answer."""


def pairs(items: list[Item]) -> int:
    """Pairs of answers to the same prompt."""
    return sum(len(item.pairs) for item in items)


def in_parts(number: int, *parts: int) -> dict[str, dict[str, Any]]:
    """TRL's settings: micro-batches of these sizes, of a turn of so many.

    Args:
        number: Pairs or answers of a turn.
        *parts: Sizes, each a divisor of the number.
    """
    return {f"micro-batches of {part}": {"pairs": part, "accumulate": number // part} for part in parts}


def against_trl(name: str, what: str, job: dict[str, Any], stage: str, settings: dict[str, Any]) -> Stage:
    """A stage whose peer is one of TRL's trainers.

    Args:
        name: Of the stage.
        what: In words.
        job: What it trains on.
        stage: ``dpo``, ``kto`` or ``reward``.
        settings: Of the peer.
    """
    unit, count = ("answers/s", answers) if stage == "kto" else ("pairs/s", pairs)
    return Stage(
        name,
        what,
        unit,
        {"stage": stage, "lengths": LENGTHS, "accumulate": 1} | job,
        "ours",
        f"trl_{stage}",
        settings,
        count,
        least=12.0 if stage == "dpo" else 2.0,
        most=0.35 if stage == "dpo" else None,
        peak="above_libraries_mib",
        before="" if stage == "reward" else "references",
    )


def before(name: str, what: str, job: dict[str, Any], apart: bool = False, side: str = "ours") -> Stage:
    """A stage whose peer is the earlier commit.

    Args:
        name: Of the stage.
        what: In words.
        job: What it trains on.
        apart: Whether the peer gets trees taken apart into pairs.
        side: What both do.
    """
    settings = {COMMIT: {"apart": apart}}
    job = {"stage": "dpo", "lengths": LENGTHS, "accumulate": 1} | job
    return Stage(name, what, "pairs/s", job, side, f"before_{side}", settings, pairs, against="commit")


APART = {"apart": True}
TREE = {"data": "ranked", "trees": 1, "answers": 4}
TABLES: dict[str, tuple[Stage, ...]] = {
    "ranked": (
        against_trl(
            "ranked",
            "DPO, cached reference, all pairs of 4 ranked answers, 1 prompt a step",
            TREE,
            "dpo",
            {name: part | APART for name, part in in_parts(6, 1, 2, 6).items()},
        ),
    ),
    "answers": (
        against_trl(
            "kto",
            "KTO, cached reference, 8 prompts with an answer each a step",
            {"data": "labeled", "trees": 8},
            "kto",
            in_parts(8, 2, 4, 8),
        ),
        against_trl(
            "reward-pairs",
            "reward stage, 8 pairs a step",
            {"data": "ranked", "trees": 8, "answers": 2},
            "reward",
            {name: part | APART for name, part in in_parts(8, 1, 2, 8).items()},
        ),
        against_trl(
            "reward-ranked",
            "reward stage, all pairs of 4 ranked answers, 2 prompts a step",
            TREE | {"trees": 2},
            "reward",
            {name: part | APART for name, part in in_parts(12, 1, 2, 6).items()},
        ),
    ),
    "grpo": GRPO,
    "groups": GROUPS,
    "before": (
        before("ranked-5", "DPO, all pairs of 5 ranked answers, 1 prompt a step", TREE | {"answers": 5}, apart=True),
        before("pairs-gsm8k", "DPO, GSM8K solutions, 4 pairs a step", {"data": "gsm8k", "pairs": 4}),
        before("pairs-chat", "DPO, chat-like pairs, 2 pairs a step", {"data": "chat", "pairs": 2}),
        before(
            "reference-gsm8k",
            "reference pass, GSM8K solutions, 4 pairs a turn",
            {"data": "gsm8k", "pairs": 4},
            side="ours_reference",
        ),
    ),
}


@dataclass(frozen=True)
class Place:
    """Where and how the sides run.

    Attributes:
        folder: For the model, references and the earlier commit's files.
        rounds: Turns of each side that count.
        precision: Of the Trainer.
        commit: The earlier one.
    """

    folder: Path
    rounds: int
    precision: str
    commit: str = COMMIT


def measure(table: str, place: Place, **changes: Any) -> list[Measurement]:
    """Lines of a table.

    Args:
        table: Of TABLES.
        place: Where and how.
        **changes: Of the jobs: another ``shape``, say.
    """
    shared = {"device": "cpu", "precision": place.precision, "shape": SIX_LAYERS} | changes
    if table == "before":
        shared["checkout"] = str(checkout(place.commit, place.folder / "before"))
    found = []
    for stage in TABLES[table]:
        print(stage.name, end=" ", flush=True)
        folders = {name: f"{place.folder}/{stage.name}/{name}" for name in ("model", "references")}
        job = stage.job | shared | folders
        make_model(job)
        paired = PairedBenchmark(replace(stage, job=job, command=f"python benchmarks/trees.py {table}"), place.rounds)
        paired.run()
        found += LINES[table](paired)
        for name, error in paired.errors.items():
            print(f"{stage.against}, {name}, left out: {error}")
    return found


def checkout(commit: str, folder: Path) -> Path:
    """Files of a commit, in a folder of their own.

    Args:
        commit: Which.
        folder: Where to.
    """
    packed = subprocess.run(["git", "archive", commit], cwd=HERE.parent, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as files:
        files.extractall(folder, filter="tar")
    return folder


def _beside_trl(paired: PairedBenchmark) -> Iterator[Measurement]:
    """Speed with the bound that operations set, memory, and for DPO the tokens beside those of each answer once."""
    speed, memory = paired.measurements()
    limit = bound(paired.jobs[OURS], paired.jobs[PEER]) if PEER in paired.turns else {}
    yield replace(speed, extra=speed.extra | limit)
    yield memory
    if paired.stage.name in ("ranked", "grpo"):  # of the others, some answers pass more than once
        yield through_the_model(paired)


def _beside_before(paired: PairedBenchmark) -> Iterator[Measurement]:
    """Seconds of a step, memory, and the tokens where the earlier commit has more of them."""
    ranked = paired.stage.name.startswith("ranked")
    _, memory = paired.measurements()
    common = {"against": paired.against, "command": paired.stage.command}
    seconds, through = (
        [[float(turn[what]) for turn in paired.turns[side]] for side in (OURS, PEER)] for what in ("seconds", "tokens")
    )
    yield Measurement(paired.stage.what, "s a turn", *seconds, most=0.3 if ranked else SAME, **common)
    if ranked:
        yield Measurement(f"{paired.stage.what}: tokens through the model", "a step", *through, most=0.3, **common)
    yield memory


LINES: dict[str, Callable[[PairedBenchmark], Iterator[Measurement]]] = {
    "ranked": _beside_trl,
    "answers": _beside_trl,
    "grpo": _beside_trl,
    "groups": by_size,
    "before": _beside_before,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}")
    parser.add_argument("--precision", default="", choices=["bf16-mixed", "32-true"], help="default: the faster here")
    parser.add_argument("--commit", default=COMMIT, help="the earlier one, for the table `before`")
    parser.add_argument("--out", type=Path, help="JSON file; default: benchmarks/results/TABLE.json")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "performance.md")
    options = parser.parse_args()
    start, rounds = time.perf_counter(), options.rounds or ROUNDS[options.table]
    with tempfile.TemporaryDirectory() as folder:
        precision = options.precision or fastest_precision()
        found = measure(options.table, Place(Path(folder), rounds, precision, options.commit))
    took = f"{time.perf_counter() - start:.0f} s, {rounds} rounds, {precision}"
    about = machine() | {"measured in": took}
    out = options.out or HERE / "results" / f"{options.table}.json"
    save(out, found, machine=about)
    put_table(options.page, options.table, found, [f"{', '.join(f'{key} {value}' for key, value in about.items())}."])
    show(found)
    print(f"every round: {out}; the table: {options.page}")


if __name__ == "__main__":
    main()
