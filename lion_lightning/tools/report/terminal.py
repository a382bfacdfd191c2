"""The report's main points on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from lion_lightning.printing import literal
from lion_lightning.tools.report.logs import ChainLogs, all_stages
from lion_lightning.tools.report.rules import Advice
from lion_lightning.tools.report.scores import Scores, declines, verdict, with_interval


def show(chains: Sequence[ChainLogs], scores: Scores | None, advice: Sequence[Advice]) -> None:
    """Print the scores of the stages, what each added to the one before, what got worse or wrong, and what to do."""
    console = Console(highlight=False, markup=False)
    if scores:
        console.print(f"Held-out {scores.measure} [95% interval over {scores.over}]")
        console.print(_table(scores))
        if scores.seeds > 1:  # in further lines: a column of all seeds fits no terminal
            for name in scores.stages:
                each = " ".join(f"{value:.3f}" for value in scores.values(name))
                console.print(literal(f"{name}, each seed: {each}"))
        for worse in declines(scores)[0]:
            console.print(literal(f"worse: {worse.what}, {worse.after} against {worse.before}: {worse.verdict.text}"))
    for stage in all_stages(chains):
        for finding in stage.findings or []:
            console.print(literal(f"wrong: {stage.name}: {finding.line}"), soft_wrap=True)
    for one in advice:
        console.print(literal(f"next: {one.what}"), soft_wrap=True)


def _table(scores: Scores) -> Table:
    table = Table()
    for title in ("stage", scores.measure, "against the stage before"):
        table.add_column(title, no_wrap=True)
    for place, stage in enumerate(scores.stages):
        change = verdict(scores.gain(stage, scores.stages[place - 1])).text if place else ""
        cells = [stage, with_interval(scores.of(stage)), change]
        table.add_row(*map(literal, cells))
    return table
