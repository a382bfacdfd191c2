"""``lion report DIR``: one page about a run, from its files."""

from __future__ import annotations

from pathlib import Path

from lion_lightning.processes.command_line import CommandParser


def main(arguments: list[str]) -> None:
    """Write ``report.html`` and ``report.png``, and print the main points.

    Args:
        arguments: Of the command line.
    """
    from lion_lightning.tools.report import write_report

    parser = CommandParser(
        prog="lion report",
        description="Say what a run did, from its files: whether each stage got better, where it got worse, what it "
        "cost, what to do next. Writes report.html, a page that loads nothing, and report.png.",
        epilog="Example: lion report runs/pipeline",
    )
    parser.add_argument("folder", type=Path, help="of `lion run`, or a trainer's default_root_dir")
    parser.add_argument("--out", type=Path, help="where to write; by default the same folder")
    options = parser.parse_args(arguments)
    print(f"wrote {write_report(options.folder, options.out)}")
