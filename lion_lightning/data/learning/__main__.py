"""``python -m lion_lightning.data.learning FILE``: the rows of a learning record that were learnt least, or last."""

from __future__ import annotations

import sys

import numpy as np

from lion_lightning.data.learning.percentage import learning_percentages
from lion_lightning.data.learning.record import RecordedLosses
from lion_lightning.printing import one_line
from lion_lightning.processes.command_line import CommandParser
from lion_lightning.processes.entry_point import run_guarded


def main(arguments: list[str]) -> None:
    """Print rows of a record, the first to be looked at first.

    Args:
        arguments: The command line without the program's name.
    """
    parser = CommandParser(
        prog="python -m lion_lightning.data.learning",
        description="Show rows of a learning record: what was learnt least, wrong answers among it, or what last.",
    )
    parser.add_argument("record", help="file of the callback LearningRecord")
    parser.add_argument("--first", type=int, default=20, help="rows to show (20)")
    order = ("loss", "percentage")
    help_text = "the highest loss after the last epoch, or the lowest learning percentage (loss)"
    parser.add_argument("--by", choices=order, default="loss", help=help_text)
    options = parser.parse_args(arguments)
    losses = RecordedLosses.read(options.record)
    trained = np.flatnonzero(losses.targets > 0)
    means = losses.nll[:, trained] / losses.targets[trained]
    highest = -np.nan_to_num(means[-1], nan=np.inf, posinf=np.inf)  # a loss that is no number is shown first
    keys = highest if options.by == "loss" else learning_percentages(losses)[trained]
    untrained = len(losses.targets) - len(trained)
    print(f"{len(trained):,} documents; {untrained:,} more have no supervised token")
    print("mean loss of a token before training and after each epoch:")
    for row in np.argsort(keys, kind="stable")[: max(options.first, 0)].tolist():
        numbers = "  ".join(f"{mean:7.3f}" for mean in means[:, row])
        print(f"{numbers}  {one_line(losses.places[trained[row]])}")


if __name__ == "__main__":
    sys.exit(run_guarded(lambda: main(sys.argv[1:])))
