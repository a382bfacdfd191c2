"""Report of the rounds of on-policy sampling: tables, samples, and a plot."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lion_lightning.cache import read_object
from lion_lightning.printing import literal
from lion_lightning.rollouts.metrics.rounds import round_metrics
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.rollouts.rounds import Round, find_rounds, kept_items
from lion_lightning.tools.rounds.models import models_table
from lion_lightning.tools.rounds.plots import plot

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
    "length": "{:z.1f}",
    "unfinished": "{:z.1%}",
    "distinct_2": "{:z.3f}",
    "self_bleu": "{:z.3f}",
}
"""Metrics of the two printed tables, with their formats; see :func:`_items_columns` for pairs and groups."""

SHOWN = 400
"""Printed characters of a prompt or an answer."""


def report(folder: Path, samples: int = 3, png: Path | None = None, console: Console | None = None) -> None:
    """Print and plot the rounds of a folder.

    Args:
        folder: Folder of the rounds.
        samples: Prompts to show with their answers.
        png: File of the plots; None for ``rounds.png`` in the folder.
        console: Prints the report; None for the terminal.

    Raises:
        ValueError: There are no rounds, or one is damaged.
    """
    console = console or Console(soft_wrap=True)
    for line in _unfinished(folder):
        console.print(line, highlight=False, markup=False)
    rounds = find_rounds(folder)
    if not rounds:
        raise ValueError(f"{folder}: no finished rounds here; name the folder with round-0000.arrow (runs/.../rounds)")
    metrics = []
    for finished in rounds:
        while_training = finished.summary.get("metrics", {})  # logged while the round was trained on
        logged = {name.removeprefix("on_policy/"): value for name, value in while_training.items()}
        metrics.append(logged | round_metrics(finished))
    items = _items_columns(rounds)
    others = set().union(*metrics) - {*round_metrics(rounds[0]), *items}
    more = dict.fromkeys(sorted(others), "{:z.4g}")
    console.print(_metrics_table("Scores", rounds, metrics, {**SCORES, **more}))
    console.print(_metrics_table("Answers", rounds, metrics, {**ANSWERS, **items}))
    counts = [left_out(finished) for finished in rounds]
    console.print(_left_out_table(rounds, counts))
    if models := models_table(rounds[-1]):
        console.print(models)
    _print_answers(console, rounds, samples)
    png = png or folder / "rounds.png"
    plot(
        rounds,
        metrics,
        [kept_items(finished.summary.get("report", {}), finished.items) for finished in rounds],
        counts,
        png,
    )
    console.print(f"wrote {png}", highlight=False, markup=False)


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


def _items_columns(rounds: Sequence[Round]) -> dict[str, str]:
    """Columns for what the rounds were made for: pairs, groups, or, in a folder of several runs, both."""
    columns: dict[str, str] = {}
    for items in dict.fromkeys(finished.items for finished in rounds):
        columns |= {items: "{:,.0f}", f"{items}_kept": "{:z.1%}"}
    return columns


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


def _metrics_table(
    title: str, rounds: Sequence[Round], metrics: Sequence[Mapping[str, float]], forms: Mapping[str, str]
) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("round", *forms):
        # A line for each word, and none of them broken: seven such columns fit 80 characters.
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    for finished, known in zip(rounds, metrics, strict=True):
        cells = []
        for name, form in forms.items():
            value = known.get(name)
            cells.append("-" if value is None or math.isnan(value) else form.format(value))
        table.add_row(str(finished.number), *cells)
    return table


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


def _print_answers(console: Console, rounds: Sequence[Round], samples: int) -> None:
    """Print answers to the same monitor prompts in the first and the last round, then trees of the last."""
    first, last = rounds[0], rounds[-1]
    # Monitor prompts are the same in all rounds; a new one is compared to itself.
    before = {rollout.group: rollout for rollout in first.rollouts if rollout.monitor}
    rows = []
    for rollout in [rollout for rollout in last.rollouts if rollout.monitor][:samples]:
        earlier = before.get(rollout.group, rollout)
        rows.append([rollout.prompt.question, _answer(earlier, 0), _answer(rollout, 0)])
    if rows:
        names = [f"round {first.number}", f"round {last.number}"]
        table = Table("prompt", *names, title="Monitor prompts", title_justify="left", show_lines=True)
        for row in rows:
            table.add_row(*(literal(text, SHOWN) for text in row))
        console.print(table)

    groups = last.items == "groups"
    trained = [rollout for rollout in last.rollouts if not rollout.left_out]
    trees = [rollout for rollout in trained if rollout.pairs or (groups and len(rollout.usable) > 1)]
    # First those that say something: whose answers differ in score.
    trees.sort(key=lambda rollout: len(set(rollout.scores)) == 1)
    if trees and samples > 0:
        console.print(_trees_table(f"Answers of round {last.number}, with their scores", trees[:samples], groups))


def _trees_table(title: str, rollouts: Sequence[Rollout], groups: bool) -> Table:
    """Prompts with all of their answers; answers that are not trained on are said to be so."""
    table = Table("prompt", "answers", title=title, title_justify="left", show_lines=True)
    if not groups:
        table.add_column("pairs", no_wrap=True)
    for rollout in rollouts:
        trained = {*rollout.usable} if groups else {*chain.from_iterable(rollout.pairs)}
        answers = []
        for position in range(len(rollout.answers)):
            note = "" if position in trained else ", not trained on"
            text = literal(_answer(rollout, position) + note, SHOWN)
            answers.append(Text.assemble(f"{position + 1}. ", text))
        cells = [literal(rollout.prompt.question, SHOWN), Text("\n").join(answers)]
        if not groups:
            cells.append(Text(_pairs(rollout)))
        table.add_row(*cells)
    return table


def _pairs(rollout: Rollout) -> str:
    """A line for each chosen answer, ``3 > 1, 2``, by the numbers of the answers; and the number of ties."""
    rejected: dict[int, list[str]] = defaultdict(list)
    ties = 0
    for chosen, other in rollout.pairs:
        if rollout.scores[chosen] == rollout.scores[other]:
            ties += 1
        else:
            rejected[chosen].append(str(other + 1))
    lines = [f"{chosen + 1} > {', '.join(others)}" for chosen, others in rejected.items()]
    return "\n".join([*lines, f"{ties} of equal scores"] if ties else lines)


def _answer(rollout: Rollout, position: int) -> str:
    """An answer with its score, the scores of several judges, and a note where it was cut off."""
    by_judge = [f"{name} {scores[position]:zg}" for name, scores in rollout.by_judge.items() if position < len(scores)]
    several = f" ({', '.join(by_judge)})" if len(by_judge) > 1 else ""
    answer = rollout.answers[position]
    model = f", by {answer.model}" if answer.model else ""
    cut = ", cut off" if answer.finish_reason == "length" else ""
    return f"{answer.text}\n= {rollout.scores[position]:zg}{several}{model}{cut}"
