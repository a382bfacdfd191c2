"""``lion inspect``: filters, loss masks and packing of a config's data."""

from __future__ import annotations

from lion_lightning.processes.command_line import CommandParser


def main(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: Command line after ``lion inspect``.
    """
    from lion_lightning.tools.inspect.inspection import inspect
    from lion_lightning.tools.pipeline.stage_config import build_for_stage

    own = CommandParser(
        prog="lion inspect",
        usage="lion inspect -c CONFIG [--stage NAME] [--rows ROWS] [any option of lion fit]",
        description="Show filters, loss masks and packing of a config's data, without training.",
        epilog="Of a pipeline file one stage: lion inspect -c configs/pipeline.yaml --stage dpo. "
        "Example: lion inspect -c configs/sft.yaml --rows 5",
    )
    own.add_argument("--stage", metavar="NAME", help="stage of the pipeline, where CONFIG is a file of lion run")
    own.add_argument("--rows", type=int, default=3, help="documents to show (3)")
    options, rest = own.parse_known_args(arguments)
    cli = build_for_stage(rest, options.stage)
    cli.trainer.strategy.connect(cli.model)
    cli.datamodule.trainer = cli.trainer
    inspect(cli.datamodule, options.rows)
