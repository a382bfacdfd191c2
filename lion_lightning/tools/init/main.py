"""``lion init STAGE``: write a config to edit."""

from __future__ import annotations

import sys

from lion_lightning.processes.command_line import CommandParser


def main(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: Command line after ``lion init``.
    """
    from lion_lightning.tools.init.config import write_config
    from lion_lightning.tools.new_file import print_or_write

    options = _parser().parse_args(arguments)
    text, lines = write_config(options.stage, options.model, options.data, options.out)
    for line in lines:
        print(line, file=sys.stderr)
    print_or_write(text, options.out)
    if options.out is not None:
        command = f"lion {'run' if options.stage == 'pipeline' else 'fit -c'} {options.out}"
        last = f"{options.out}: written; edit the lines marked <-- edit, if there are any, then: {command}"
        print(last, file=sys.stderr)


def _parser() -> CommandParser:
    from lion_lightning.tools.init.config import STAGES

    parser = CommandParser(
        prog="lion init",
        description="Write a commented config for a stage, or for all three of a pipeline, from a model and data. The "
        "first rows of local data are looked at, and what was understood is said.",
        epilog="Example: lion init dpo --model HuggingFaceTB/SmolLM2-135M-Instruct --data my.jsonl -o my.yaml",
    )
    parser.add_argument("stage", choices=[*STAGES, "pipeline"], help="what to train: pipeline is SFT, DPO, online DPO")
    parser.add_argument("--model", help="folder or hub id of a causal LM (default: SmolLM2-135M, to be edited)")
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="FILE",
        help="file, glob, folder or hub id; for a pipeline conversations, then pairs, then questions",
    )
    parser.add_argument("-o", "--out", help="file to write, which must not exist (default: print the config)")
    return parser
