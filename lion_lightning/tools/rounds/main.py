"""``lion rounds DIR``: metrics, samples and plots of the rounds of on-policy sampling."""

from __future__ import annotations

from pathlib import Path

from lion_lightning.processes.command_line import CommandParser


def main(arguments: list[str]) -> None:
    """Run the command."""
    parser = CommandParser(
        prog="lion rounds",
        description="Print and plot the rounds of on-policy sampling.",
        epilog="Example: lion rounds runs/online_dpo --samples 5",
    )
    parser.add_argument("folder", help="folder of the rounds, or of their stage or run, e.g. runs/online_dpo")
    parser.add_argument("--samples", type=int, default=3, help="prompts to show with their answers (3)")
    parser.add_argument("--png", help="file of the plots; by default rounds.png in the folder")
    options = parser.parse_args(arguments)
    from lion_lightning.tools.rounds.report import report  # imports matplotlib

    report(Path(options.folder), options.samples, Path(options.png) if options.png else None)
