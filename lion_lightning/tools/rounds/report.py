"""Report of the rounds of on-policy sampling: tables, samples, and a plot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lion_lightning.cache import read_object
from lion_lightning.printing import literal
from lion_lightning.rollouts.metrics.rounds import round_metrics
from lion_lightning.rollouts.rounds import Round, find_rounds
from lion_lightning.tools.rounds.answers import print_answers
from lion_lightning.tools.rounds.models import models_table
from lion_lightning.tools.rounds.plots import plot
from lion_lightning.tools.rounds.tables import metric_tables


def report(folder: Path, samples: int = 3, png: Path | None = None, console: Console | None = None) -> None:
    """Print and plot the rounds of a folder.

    Args:
        folder: Folder of the rounds, or of the stage or the run that they belong to.
        samples: Prompts to show with their answers.
        png: File of the plots; None for ``rounds.png`` in the folder.
        console: Prints the report; None for the terminal.

    Raises:
        ValueError: There are no rounds, or one is damaged.
    """
    console = console or Console(soft_wrap=True)
    folder = rounds_folder(folder)
    for line in _unfinished(folder):
        console.print(line, highlight=False, markup=False)
    rounds = find_rounds(folder)
    if not rounds:
        raise ValueError(f"{folder}: no finished rounds here; name the folder of a stage that samples answers")
    metrics = []
    for finished in rounds:
        found = round_metrics(finished)
        for key, value in finished.summary.get("metrics", {}).items():
            if value is not None:  # what was logged while the round was trained on
                found.setdefault(key.removeprefix("on_policy/"), value)
        metrics.append(found)
    for table in metric_tables(rounds, metrics):
        console.print(table)
    counts = [left_out(finished) for finished in rounds]
    console.print(_left_out_table(rounds, counts))
    if models := models_table(rounds[-1]):
        console.print(models)
    print_answers(console, rounds, samples)
    png = png or folder / "rounds.png"
    plot(rounds, metrics, [_kept(finished) for finished in rounds], counts, png)
    console.print(f"wrote {png}", highlight=False, markup=False)


def rounds_folder(folder: Path) -> Path:
    """The folder of rounds within that of a stage, or of a run where one stage alone has rounds.

    Raises:
        ValueError: Several stages have rounds.
    """
    found = sorted({path.parent for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}rounds/round-*")})
    if any(folder.glob("round-*")) or not found:
        return folder
    if len(found) > 1:
        raise ValueError(f"{folder}: several folders have rounds; name one of {', '.join(map(str, found))}")
    return found[0]


def left_out(finished: Round) -> dict[str, int]:
    """Number of prompts, and of pairs or answers, of a round that were not trained on, by cause.

    Args:
        finished: The round; what the filters left out is known once it was trained on.
    """
    counts: Counter[str] = Counter()
    for rollout in finished.rollouts:
        if rollout.left_out:
            counts[f"prompts: {rollout.left_out}"] += 1
    for cause, count in finished.summary.get("report", {}).get("left_out", {}).items():
        noun = "answers" if "answers" in count else "pairs"
        counts[f"{noun}: {cause}"] = int(count[noun])
    return counts


def _kept(finished: Round) -> float:
    """Pairs or answers of a round that were trained on; NaN where that is unknown."""
    kept = finished.summary.get("report", {}).get("kept", {})
    return float(kept.get("answers" if finished.items == "groups" else "pairs", math.nan))


def _unfinished(folder: Path) -> list[str]:
    """A line for each round that is being made, or was when its run was killed."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name the folder of the rounds (runs/.../rounds)")
    lines = []
    for chunks in sorted(folder.glob("round-*.parts-*")):
        plan = chunks / "plan.json"
        known = read_object(plan, "the plan of a round", "remove it") if plan.exists() else {}
        total = known.get("chunks", "?")
        sampled, judged = (len(list(chunks.glob(f"{step}-*.arrow"))) for step in ("sampled", "judged"))
        lines.append(f"{chunks.name}: unfinished, {sampled} of {total} chunks sampled and {judged} judged")
    return lines


def _left_out_table(rounds: Sequence[Round], counts: Sequence[Mapping[str, int]]) -> Table | str:
    causes = sorted(set().union(*counts))
    if not causes:
        return "nothing was left out\n"
    table = Table("left out", title="Left out, by round", title_justify="left")
    for finished in rounds:
        table.add_column(str(finished.number), justify="right", no_wrap=True)
    for cause in causes:
        table.add_row(literal(cause), *(f"{found.get(cause, 0):,}" for found in counts))
    return table
