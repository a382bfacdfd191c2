"""``lion report DIR``: plot a run from its logs."""

from __future__ import annotations

import argparse
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Write ``report.html`` and ``report.png``.

    Args:
        arguments: Of the command line.
    """
    from lion_lightning.tools.report import write_report

    parser = argparse.ArgumentParser(
        prog="lion report", description="Plot a run from its logs: report.html, and report.png."
    )
    parser.add_argument("folder", type=Path, help="of `lion run`, or a trainer's default_root_dir")
    parser.add_argument("--out", type=Path, help="where to write; by default the same folder")
    options = parser.parse_args(arguments)
    print(f"wrote {write_report(options.folder, options.out)}")
