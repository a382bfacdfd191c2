"""The ``lion`` command: LightningCLI with two more commands, and errors of one line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lion_lightning.cli_errors import explain
from lion_lightning.modules.base import AlignmentModule

USER_ERRORS = (ValueError, MisconfigurationException, ModuleNotFoundError, OSError, ArgumentError)
"""What a person can mend: printed as one line, without a traceback. ``LION_DEBUG=1`` brings the traceback back."""

EPILOG = """further commands:
    inspect             show what a config's mask, packing and filters do to its data, before any training
    export              write a checkpoint as a Hugging Face folder
    rounds              print and draw what happened in the rounds of on-policy sampling
Each has its own --help."""


class LionCLI(LightningCLI):
    """Runs any ``AlignmentModule`` with any data module; the tokenizer is written once, in the model."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Give the data module the model's tokenizer (Lightning calls this)."""
        parser.link_arguments("model", "data.init_args.tokenizer", compute_fn=_tokenizer_spec, apply_on="instantiate")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's subcommands but ``predict``, which an alignment module has no step for."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name != "predict"}

    def _parse_ckpt_path(self) -> None:
        """Leave the config as it was given: Lightning would replace it by the checkpoint's, without a word."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: Arguments without the program's name; None for the process's own.

    Returns:
        0, or 2 after an error that the user can mend.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _prepare_process()
    name = arguments[0] if arguments else "--help"
    try:
        if name in COMMANDS:
            COMMANDS[name](arguments[1:])
        else:
            _refuse_unknown_command(name)
            build_cli(arguments or [name])
    except USER_ERRORS as error:
        if os.environ.get("LION_DEBUG"):
            raise
        print(f"lion: error: {explain(error)}", file=sys.stderr)
        return 2
    return 0


def build_cli(arguments: list[str], run: bool = True) -> LionCLI:
    """Parse arguments into a model, a data module and a trainer, and run the subcommand among them.

    Args:
        arguments: Command line, with a subcommand if ``run``.
        run: Whether to run it.
    """
    return LionCLI(
        AlignmentModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={
            "description": "Align language models with PyTorch Lightning.",
            "epilog": EPILOG,
            "exit_on_error": False,
            "formatter_class": argparse.RawDescriptionHelpFormatter,
        },
        auto_configure_optimizers=False,
        run=run,
        args=arguments,
    )


def inspect_command(arguments: list[str]) -> None:
    """``lion inspect -c CONFIG``: print what training would see, and stop."""
    from lion_lightning.data.inspection import inspect

    own = argparse.ArgumentParser(
        prog="lion inspect",
        usage="lion inspect -c CONFIG [--rows ROWS] [any option of lion fit]",
        description="Show what a config does to its data, before any training: masks, packing, and what is left out.",
    )
    own.add_argument("--rows", type=int, default=3, help="documents to show (3)")
    options, rest = own.parse_known_args(arguments)
    cli = build_cli(rest, run=False)
    cli.trainer.strategy.connect(cli.model)
    cli.datamodule.trainer = cli.trainer
    inspect(cli.datamodule, options.rows)


def export_command(arguments: list[str]) -> None:
    """``lion export CKPT OUT``: write a checkpoint as a Hugging Face folder."""
    from lion_lightning.models.export import export_checkpoint

    parser = argparse.ArgumentParser(prog="lion export", description="Write a checkpoint as a Hugging Face folder.")
    parser.add_argument("checkpoint", help="a .ckpt file, e.g. runs/sft/checkpoints/last.ckpt")
    parser.add_argument("out", help="folder to write")
    options = parser.parse_args(arguments)
    print(f"wrote {export_checkpoint(options.checkpoint, options.out)}")


def rounds_command(arguments: list[str]) -> None:
    """``lion rounds DIR``: print and draw what happened in the rounds of on-policy sampling."""
    from lion_lightning.data.round_report import report

    parser = argparse.ArgumentParser(
        prog="lion rounds", description="Print and draw what happened in the rounds of on-policy sampling."
    )
    parser.add_argument("folder", help="where the rounds lie, e.g. runs/online_dpo/rounds")
    parser.add_argument("--samples", type=int, default=3, help="prompts to show with their answers (3)")
    parser.add_argument("--png", help="where to draw; by default rounds.png in the folder")
    options = parser.parse_args(arguments)
    report(Path(options.folder), options.samples, Path(options.png) if options.png else None)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "inspect": inspect_command,
    "export": export_command,
    "rounds": rounds_command,
}
"""Commands that LightningCLI has not."""


def _refuse_unknown_command(name: str) -> None:
    known = [*LionCLI.subcommands(), *COMMANDS]
    if not name.startswith("-") and name not in known:
        raise ValueError(f"unknown command {name!r}; the commands are {', '.join(known)}")


def _tokenizer_spec(model: AlignmentModule) -> Any:
    return model.tokenizer_spec


def _prepare_process() -> None:
    """Let configs name modules of the working folder, show our log, and hush what nobody can act on."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    handler = logging.StreamHandler()  # a new one each time: it holds on to the stderr of its making
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("lion_lightning")
    package.handlers = [handler]
    package.setLevel(logging.INFO)
    # Advertisements among Lightning's messages.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in str(record.msg))
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
