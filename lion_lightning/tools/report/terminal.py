"""The report's first table, for the terminal."""

from __future__ import annotations

from lion_lightning.printing import literal
from lion_lightning.tools.report.accuracy import Accuracy


def show(accuracy: Accuracy) -> None:
    """Print held-out accuracies of the stages, and what each added to the one before.

    Args:
        accuracy: Of every stage and seed.
    """
    from rich.console import Console
    from rich.table import Table

    title = f"Held-out accuracy, {accuracy.seeds} seeds [95% interval]"
    table = Table("stage", "accuracy", "gain over the stage before", "each seed", title=title, title_justify="left")
    for stage in accuracy.stages:
        gain = accuracy.gain(stage)
        gained = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gain) if gain else ""
        seeds = ", ".join(f"{value:.3f}" for value in accuracy.values(stage))
        cells = (stage, "{:.3f} [{:.3f}, {:.3f}]".format(*accuracy.overall(stage)), gained, seeds)
        table.add_row(*map(literal, cells))
    Console().print(table)
