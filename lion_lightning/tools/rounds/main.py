"""``lion rounds DIR``: what happened in the rounds of on-policy sampling."""

from __future__ import annotations

import argparse
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Print and draw it.

    Args:
        arguments: Of the command line.
    """
    from lion_lightning.tools.rounds.report import report

    parser = argparse.ArgumentParser(
        prog="lion rounds", description="Print and draw what happened in the rounds of on-policy sampling."
    )
    parser.add_argument("folder", help="where the rounds lie, e.g. runs/online_dpo/rounds")
    parser.add_argument("--samples", type=int, default=3, help="prompts to show with their answers (3)")
    parser.add_argument("--png", help="where to draw; by default rounds.png in the folder")
    options = parser.parse_args(arguments)
    report(Path(options.folder), options.samples, Path(options.png) if options.png else None)
