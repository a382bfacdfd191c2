"""``lion import FILE``: a config of another program as one of ``lion fit``."""

from __future__ import annotations

from lion_lightning.processes.command_line import CommandParser


def main(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: Command line after ``lion import``.
    """
    from lion_lightning.tools.importing.reading import DIALECTS, import_config
    from lion_lightning.tools.importing.recipe import OBJECTIVES

    parser = CommandParser(
        prog="lion import",
        description="Turn a config of axolotl, LLaMA-Factory, TRL or alignment-handbook (SFT, DPO, KTO, reward models) "
        "into a config of lion fit. Keys that could not be carried over are named with the reason, as comments of the "
        "config and on stderr.",
        epilog="Example: lion import zephyr/dpo/config_full.yaml -o zephyr.yaml",
    )
    parser.add_argument("file", help="the config, YAML or JSON")
    parser.add_argument("-o", "--out", help="file to write, which must not exist (default: print the config)")
    parser.add_argument("--from", dest="dialect", choices=sorted(DIALECTS), help="the program (default: by the keys)")
    parser.add_argument("--stage", choices=OBJECTIVES, help="what is trained (default: by the keys)")
    options = parser.parse_args(arguments)
    import_config(options.file, options.out, options.dialect, options.stage)
