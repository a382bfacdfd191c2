"""``lion demo``: write the files of the demo task."""

from __future__ import annotations

from lion_lightning.processes.command_line import CommandParser


def main(arguments: list[str]) -> None:
    """Write the data, the tokenizer and the model config.

    Args:
        arguments: Of the command line.
    """
    from lion_lightning.tools.demo import FILES, write_demo

    parser = CommandParser(
        prog="lion demo",
        description="Write a small synthetic task to try everything on.",
        epilog="Example: lion demo runs/demo --seed 1",
    )
    parser.add_argument("out", nargs="?", default="runs/demo", help="folder to write to (default: runs/demo)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed writes the same files (default: 0)")
    options = parser.parse_args(arguments)
    write_demo(options.out, seed=options.seed)
    print(f"{options.out}: wrote {', '.join(FILES)} and model/ (tokenizer and config, no weights)")
