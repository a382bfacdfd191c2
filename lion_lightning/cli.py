"""The ``lion`` command: LightningCLI with further commands, and errors of one line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lion_lightning.callbacks import LionProgressBar, StartupSummary
from lion_lightning.cli_errors import explain
from lion_lightning.modules.base import AlignmentModule

USER_ERRORS = (ValueError, MisconfigurationException, ModuleNotFoundError, OSError, ArgumentError)
"""What a person can mend: printed as one line, without a traceback. ``LION_DEBUG=1`` brings the traceback back."""


COMMANDS = {
    "run": "run the stages of a pipeline file, one from the other's export",
    "report": "draw what a run did, from its logs on disk",
    "evaluate": "losses, accuracies and win rates of a trained model",
    "chat": "talk to a trained model",
    "plan": "reckon memory a GPU and time a step of a config, under each strategy, without any GPU",
    "inspect": "show what a config's mask, packing and filters do to its data, before any training",
    "export": "write a checkpoint as a Hugging Face folder",
    "rounds": "print and draw what happened in the rounds of on-policy sampling",
    "answers": "answer the questions of AlpacaEval, Arena-Hard or MT-Bench, in those tools' formats",
    "harness": "score a model on tasks of lm-evaluation-harness",
}
"""Commands that LightningCLI has not: modules of ``lion_lightning.commands``, and what they are for."""

EPILOG = "\n".join(
    ["further commands:", *(f"    {name:<18}  {what}" for name, what in COMMANDS.items()), "Each has its own --help."]
)


class LionCLI(LightningCLI):
    """Runs any ``AlignmentModule`` with any data module; the tokenizer is written once, in the model."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Give the data module the model's tokenizer (Lightning calls this)."""
        parser.link_arguments("model", "data.init_args.tokenizer", compute_fn=_tokenizer_spec, apply_on="instantiate")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's subcommands but ``predict``, which an alignment module has no step for."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name != "predict"}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Log, show progress and sum up the start, where the config does not say otherwise (Lightning calls this)."""
        given = self._get(self.config_init, "trainer", default={})
        if given.get("logger") in (None, True):
            kwargs["logger"] = default_loggers(given.get("default_root_dir") or os.getcwd())
        kwargs["callbacks"] = [*(given.get("callbacks") or ()), *default_callbacks(given)]
        kwargs["enable_model_summary"] = bool(given.get("enable_model_summary"))
        return super().instantiate_trainer(**kwargs)

    def _parse_ckpt_path(self) -> None:
        """Leave the config as it was given: Lightning would replace it by the checkpoint's, without a word."""


def default_loggers(folder: str) -> list[Logger]:
    """Metrics as ``metrics.csv``, which `lion report` reads, and for TensorBoard: both in one folder a start.

    Args:
        folder: The trainer's ``default_root_dir``.
    """
    table = CSVLogger(folder)
    return [table, TensorBoardLogger(folder, version=table.version)]


def default_callbacks(trainer: Mapping[str, Any]) -> list[Callback]:
    """A progress bar and a start-up summary, unless the config has its own or switches them off.

    Args:
        trainer: The config's ``trainer``, its callbacks made: ``enable_progress_bar: false`` leaves out the bar,
            ``enable_model_summary`` the summary: ``false`` for none, ``true`` for Lightning's instead.
    """
    given = trainer.get("callbacks") or ()
    made: list[Callback] = []
    if trainer.get("enable_progress_bar") is not False and not any(isinstance(one, ProgressBar) for one in given):
        made.append(LionProgressBar())
    if trainer.get("enable_model_summary") is None and not any(isinstance(one, StartupSummary) for one in given):
        made.append(StartupSummary())
    return made


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
            import_module(f"lion_lightning.commands.{name}").main(arguments[1:])
        else:
            _refuse_unknown_command(name)
            build_cli(arguments or [name])
    except USER_ERRORS as error:
        if os.environ.get("LION_DEBUG"):
            raise
        print(f"lion: error: {explain(error)}", file=sys.stderr)
        return 2
    return 0


def build_cli(arguments: list[str], run: bool = True, kind: type[LionCLI] = LionCLI) -> LionCLI:
    """Parse arguments into a model, a data module and a trainer, and run the subcommand among them.

    Args:
        arguments: Command line, with a subcommand if ``run``.
        run: Whether to run it.
        kind: What parses.
    """
    return kind(
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
