"""``lion fit``, ``lion validate`` and ``lion test``."""

from __future__ import annotations

from lion_lightning.processes.stopping import STOP
from lion_lightning.tools.train.lightning_cli import build_cli


def main(arguments: list[str]) -> None:
    """Run a subcommand of LightningCLI."""
    with STOP.handle_interrupts():
        build_cli(arguments)
