"""``lion inspect``: filters, loss masks and packing of a config's data."""

from __future__ import annotations

import argparse


def main(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: Command line after ``lion inspect``.
    """
    from lion_lightning.tools.inspect.inspection import inspect
    from lion_lightning.tools.train.lightning_cli import build_cli

    own = argparse.ArgumentParser(
        prog="lion inspect",
        usage="lion inspect -c CONFIG [--rows ROWS] [any option of lion fit]",
        description="Show filters, loss masks and packing of a config's data, without training.",
        epilog="Example: lion inspect -c configs/sft.yaml --rows 5",
    )
    own.add_argument("--rows", type=int, default=3, help="documents to show (3)")
    options, rest = own.parse_known_args(arguments)
    cli = build_cli(rest, run=False)
    cli.trainer.strategy.connect(cli.model)
    cli.datamodule.trainer = cli.trainer
    inspect(cli.datamodule, options.rows)
