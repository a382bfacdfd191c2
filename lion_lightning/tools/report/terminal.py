"""Print the accuracies of a report."""

from __future__ import annotations

from lion_lightning.printing import literal
from lion_lightning.tools.report.accuracy import Accuracy, with_interval


def show(accuracy: Accuracy) -> None:
    """Print held-out accuracies of the stages, and what each added to the one before."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for title in ("stage", "accuracy", "gain"):
        table.add_column(title, no_wrap=True)
    if accuracy.seeds > 1:
        table.add_column("each seed")
    for stage in accuracy.stages:
        gain = accuracy.gain(stage)
        cells = [stage, with_interval(accuracy.overall(stage)), with_interval(gain, "{:+.3f}") if gain else ""]
        if accuracy.seeds > 1:
            cells.append(", ".join(f"{value:.3f}" for value in accuracy.values(stage)))
        table.add_row(*map(literal, cells))
    console = Console(highlight=False, markup=False)
    console.print(accuracy.title)
    console.print(table)
