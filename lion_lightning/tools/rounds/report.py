"""Report of the rounds of on-policy sampling: tables, samples, and a plot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lion_lightning.cache import read_object
from lion_lightning.printing import literal
from lion_lightning.rollouts.metrics import round_metrics
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.rollouts.rounds import Round, find_rounds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SCORES = {
    "score": "{:z.3f}",
    "score_spread": "{:z.3f}",
    "score_worst": "{:z.3f}",
    "score_best": "{:z.3f}",
    "monitor_score": "{:z.3f}",
    "win_rate": "{:z.1%}",
}
ANSWERS = {
    "prompts": "{:,.0f}",
    "pairs": "{:,.0f}",
    "pairs_kept": "{:z.1%}",
    "length": "{:z.1f}",
    "unfinished": "{:z.1%}",
    "distinct_2": "{:z.3f}",
    "self_bleu": "{:z.3f}",
}
"""The metrics that are printed, in two tables, and how."""

SHOWN = 400
"""Characters of a prompt or an answer that are printed."""


def report(folder: Path, samples: int = 3, png: Path | None = None, console: Console | None = None) -> None:
    """Print and draw the rounds of a folder.

    Args:
        folder: Folder of the rounds.
        samples: Prompts to show with their answers.
        png: Where to draw; None for ``rounds.png`` in the folder.
        console: Where to print; None for the terminal.

    Raises:
        ValueError: There are no rounds, or one is damaged.
    """
    from rich.console import Console

    console = console or Console(soft_wrap=True)
    for line in _under_way(folder):
        console.print(line, highlight=False, markup=False)
    rounds = find_rounds(folder)
    if not rounds:
        raise ValueError(f"{folder}: no finished rounds here; name the folder with round-0000.arrow (runs/.../rounds)")
    metrics = [_all_metrics(made) for made in rounds]
    logged = {name for known in metrics for name in known} - {*round_metrics(rounds[0]), *ANSWERS}
    more = dict.fromkeys(sorted(logged), "{:z.4g}")
    console.print(_metrics_table("Scores", rounds, metrics, {**SCORES, **more}))
    console.print(_metrics_table("Answers", rounds, metrics, ANSWERS))
    console.print(_causes_table(rounds))
    _show(console, rounds, samples)
    _draw(console, rounds, metrics, png or folder / "rounds.png")


def causes(made: Round) -> dict[str, int]:
    """What kept prompts and pairs of a round from training, with their numbers.

    Args:
        made: The round; what its pairs lost is known once it was trained on.
    """
    prompts = Counter(rollout.left_out for rollout in made.rollouts if rollout.left_out)
    lost = made.summary.get("report", {}).get("left_out", {})
    pairs = {f"pairs: {cause}": int(counts["pairs"]) for cause, counts in lost.items()}
    return {**{f"prompts: {cause}": count for cause, count in prompts.items()}, **pairs}


def kept(made: Round) -> float:
    """Pairs of a round that were trained on; NaN where that is not known yet."""
    found = made.summary.get("report", {}).get("kept", {})
    return float(found.get("pairs", math.nan))


def _under_way(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name the one with the rounds (runs/.../rounds)")
    lines = []
    for parts in sorted(folder.glob("round-*.parts-*")):
        plan = parts / "plan.json"
        known = read_object(plan, "the plan of a round", "remove it") if plan.exists() else {}
        total = known.get("chunks", "?")
        done = [len(list(parts.glob(f"{what}-*.arrow"))) for what in ("sampled", "judged")]
        lines.append(f"{parts.name}: under way, {done[0]} of {total} chunks sampled and {done[1]} judged")
    return lines


def _metrics_table(
    title: str, rounds: Sequence[Round], metrics: Sequence[Mapping[str, float]], forms: Mapping[str, str]
) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("round", *forms):
        # A line for each word, and none of them broken: seven such columns fit 80 characters.
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    for made, known in zip(rounds, metrics, strict=True):
        table.add_row(str(made.number), *(_cell(known.get(name), form) for name, form in forms.items()))
    return table


def _all_metrics(made: Round) -> dict[str, float]:
    """Metrics of the rollouts, and those that were logged too."""
    logged = {name.removeprefix("on_policy/"): value for name, value in made.summary.get("metrics", {}).items()}
    return logged | round_metrics(made)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else form.format(value)


def _causes_table(rounds: Sequence[Round]) -> Table | str:
    from rich.table import Table

    counts = [causes(made) for made in rounds]
    names = sorted({name for found in counts for name in found})
    if not names:
        return "nothing was left out\n"
    table = Table("left out", title="Left out, by round", title_justify="left")
    for made in rounds:
        table.add_column(str(made.number), justify="right", no_wrap=True)
    for name in names:
        table.add_row(literal(name), *(f"{found.get(name, 0):,}" for found in counts))
    return table


def _show(console: Console, rounds: Sequence[Round], samples: int) -> None:
    """The same monitor prompts over the first and the last round; then pairs of the last."""
    watched = [rollout for rollout in rounds[-1].rollouts if rollout.monitor][:samples]
    if watched:
        first = {rollout.group: rollout for rollout in rounds[0].rollouts if rollout.monitor}
        rows = [(one, [(first.get(one.group, one), 0), (one, 0)]) for one in watched]
        names = [f"round {made.number}" for made in (rounds[0], rounds[-1])]
        console.print(_answers_table("Monitor prompts", names, rows))
    paired = [rollout for rollout in rounds[-1].rollouts if rollout.pairs][:samples]
    pairs = [(one, [(one, place) for place in one.pairs[0]]) for one in paired]
    if pairs:
        console.print(_answers_table(f"Pairs of round {rounds[-1].number}", ["chosen", "rejected"], pairs))


def _answers_table(
    title: str, names: Sequence[str], rows: Sequence[tuple[Rollout, list[tuple[Rollout, int]]]]
) -> Table:
    from rich.table import Table

    table = Table("prompt", *names, title=title, title_justify="left", show_lines=True)
    for rollout, answers in rows:
        said = [_answer(one, place) for one, place in answers]
        table.add_row(*(literal(text, SHOWN) for text in (rollout.prompt.question, *said)))
    return table


def _answer(rollout: Rollout, place: int) -> str:
    parts = {name: scores[place] for name, scores in rollout.by_judge.items() if place < len(scores)}
    several = f" ({', '.join(f'{name} {score:zg}' for name, score in parts.items())})" if len(parts) > 1 else ""
    cut = ", cut off" if rollout.answers[place].finish_reason == "length" else ""
    return f"{rollout.answers[place].text}\n= {rollout.scores[place]:zg}{several}{cut}"


def _draw(console: Console, rounds: Sequence[Round], metrics: Sequence[Mapping[str, float]], png: Path) -> None:
    from lion_lightning.tools.rounds.plots import draw

    draw(rounds, metrics, [kept(made) for made in rounds], [causes(made) for made in rounds], png)
    console.print(f"wrote {png}", highlight=False, markup=False)
