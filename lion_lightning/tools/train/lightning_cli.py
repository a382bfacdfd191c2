"""LightningCLI with the defaults of this project: ``lion fit``, ``validate`` and ``test``."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from inspect import signature
from operator import attrgetter
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lion_lightning.callbacks import HealthMonitor, LionProgressBar, StartupSummary
from lion_lightning.models.checkpoints.files import newest_checkpoint, require_local
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.printing import require_no_secrets
from lion_lightning.processes.command_line import mistyped, unrecognized
from lion_lightning.tools.train.config_file import check_config_files
from lion_lightning.tools.train.metrics_log import AtomicCSVLogger, LogShortRuns
from lion_lightning.tools.train.null_settings import refuse_nulls
from lion_lightning.tools.train.option_hints import hint
from lion_lightning.tools.train.replaced_lists import lists_replaced
from lion_lightning.tools.train.stopping import LockRootDir, StopBetweenSteps

CONFIG_KEYS: Mapping[str, Collection[str] | None] = {
    "seed_everything": None,
    "trainer": tuple(signature(Trainer).parameters),
    "model": None,
    "data": None,
    "verbose": None,
    "ckpt_path": None,
    "weights_only": None,
}
"""Valid top-level keys of a config file, and valid keys of ``trainer``."""

EXAMPLES = {
    "fit": "lion fit -c configs/sft.yaml --trainer.max_epochs 1",
    "validate": "lion validate -c configs/sft.yaml --ckpt_path last",
    "test": "lion test -c configs/sft.yaml --ckpt_path last",
}
"""A command line of each subcommand, for its help."""

_EXAMPLES = {"model": "lion_lightning.SFTModule", "data": "lion_lightning.SFTDataModule"}


class LionCLI(LightningCLI):
    """Runs any ``AlignmentModule`` with any data module, which gets the model's tokenizer."""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the data module's tokenizer to the model's."""
        spec = attrgetter("tokenizer_spec")
        parser.link_arguments("model", "data.init_args.tokenizer", compute_fn=spec, apply_on="instantiate")

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        """All subcommands of LightningCLI but ``predict``, for which alignment modules have no step."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name != "predict"}

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a list replaces an earlier one, and an option by another name gets a hint."""
        try:
            with lists_replaced():
                super().parse_arguments(parser, args)
        except ArgumentError as error:
            parsers = [parser, *getattr(self, "_subcommand_parsers", {}).values()]  # there are none without `run`
            known = [option for each in parsers for option in each._option_string_actions]
            if line := hint(str(error), args) or mistyped(unrecognized(str(error)), known):
                raise ValueError(line) from error
            raise

    @override
    def before_instantiate_classes(self) -> None:
        """Refuse a config without classes, with secrets or with nulls.

        Without a class the parser would instantiate the base class. Config files are checked for secrets when they are
        read; this also covers the command line.
        """
        require_no_secrets(self.config.as_dict())
        for part, base in (("model", AlignmentModule), ("data", LightningDataModule)):
            if str(self._get(self.config, f"{part}.class_path")).rpartition(".")[2] == base.__name__:
                raise ValueError(f"{part}: class_path is missing; set it, e.g. to {_EXAMPLES[part]}")
        config = self.config.as_dict()
        own = config[self.subcommand] if self.subcommand else config
        tokenizer = ((own["data"] or {}).get("init_args") or {}).get("tokenizer")
        if tokenizer is not None:
            raise ValueError(
                "data.tokenizer: data is tokenized by the model's tokenizer, so that both agree; give model.tokenizer "
                "(without it, that of policy.path), and leave this out"
            )
        refuse_nulls({name: own[name] for name in ("model", "data")}, None)
        refuse_nulls(own["trainer"], Trainer, "trainer")

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add loggers, a bar, a summary and a health monitor, unless the config has others or disables them.

        Checkpoints without a ``dirpath`` are saved to ``checkpoints`` in the trainer's ``default_root_dir``.
        """
        given = self._get(self.config_init, "trainer", default={})
        if given.get("logger") in (None, True):
            # `lion report` reads metrics.csv; TensorBoard's files are next to it, in one folder per run.
            folder = given.get("default_root_dir") or os.getcwd()
            table = AtomicCSVLogger(folder)
            kwargs["logger"] = [table, TensorBoardLogger(folder, version=table.version)]
        # Without default_root_dir many runs may share the working folder.
        lock = [LockRootDir()] if given.get("default_root_dir") else []
        logs = [LogShortRuns()] if given.get("log_every_n_steps") is None else []
        own = given.get("callbacks") or ()
        for saver in own if given.get("default_root_dir") else ():
            if isinstance(saver, ModelCheckpoint) and saver.dirpath is None:
                saver.dirpath = str(Path(given["default_root_dir"], "checkpoints").absolute())
        shown: list[Callback] = []
        if given.get("enable_progress_bar") is not False and not any(isinstance(one, ProgressBar) for one in own):
            shown.append(LionProgressBar())
        if given.get("enable_model_summary") is None and not any(isinstance(one, StartupSummary) for one in own):
            shown.append(StartupSummary())
        if not any(isinstance(one, HealthMonitor) for one in own):
            shown.append(HealthMonitor())
        kwargs["callbacks"] = [StopBetweenSteps(), *lock, *logs, *own, *shown]
        # Lightning's summary only where it is asked for: ours is in its place.
        kwargs["enable_model_summary"] = bool(given.get("enable_model_summary"))
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Resolve ``ckpt_path: last`` to the newest complete checkpoint; Lightning takes ``last.ckpt`` as it is."""
        given = self.config_init[self.subcommand]
        path = given.get("ckpt_path")
        if path == "last":
            found = newest_checkpoint(*checkpoint_paths(self.trainer))
            if found is None and self.subcommand != "fit":
                raise ValueError("ckpt_path: `last` finds no checkpoint; train first")
            if found is None:
                rank_zero_info("No checkpoint yet: starting from the beginning.")
            given["ckpt_path"] = found and str(found)
        elif path is not None:
            require_local(path)
        elif self.subcommand != "fit":
            rank_zero_info("Using the model that training starts from; use --ckpt_path last for the trained one.")

    before_validate = before_test = before_fit

    def after_validate(self) -> None:
        """Refuse a run without batches, which would succeed without metrics."""
        part = "test" if self.subcommand == "test" else "val"
        if not sum(getattr(self.trainer, f"num_{part}_batches")):
            raise ValueError(
                "there are no validation rows; set data.validation or data.validation_share (and no "
                f"trainer.limit_{part}_batches: 0)"
            )

    after_test = after_validate

    @override
    def _set_seed(self) -> None:
        """Set the seed; Lightning's error does not name the key."""
        try:
            super()._set_seed()
        except ValueError as error:
            raise ValueError(f"seed_everything: {error}") from error

    @override
    def _parse_ckpt_path(self) -> None:
        """Keep the config: Lightning would silently replace it by the checkpoint's."""


def checkpoint_paths(trainer: Trainer) -> list[Path]:
    """Folders and files that may hold checkpoints of a trainer, those of earlier runs in its folder included."""
    places = sorted(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))  # written by Lightning under SLURM
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            places.append(Path(callback.dirpath))
        elif isinstance(callback, ModelCheckpoint):
            for logger in trainer.loggers:  # one folder per run
                logs = Path(logger.save_dir or trainer.default_root_dir, str(logger.name))
                places += sorted(logs.glob("*/checkpoints"))
            places.append(Path(trainer.default_root_dir, "checkpoints"))
        elif isinstance(callback, OnExceptionCheckpoint):
            places.append(Path(callback.ckpt_path))
    return places


def build_cli(arguments: list[str], run: bool = True, kind: type[LionCLI] = LionCLI) -> LionCLI:
    """Instantiate model, data module and trainer from arguments, and run the subcommand.

    Args:
        arguments: Command line, with a subcommand if ``run`` is set.
        run: Run the subcommand.
        kind: Class of the CLI.
    """
    check_config_files(arguments, CONFIG_KEYS)
    return kind(
        AlignmentModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={
            "description": "Align language models with PyTorch Lightning.",
            "exit_on_error": False,
            "allow_abbrev": False,
            **{name: {"epilog": f"Example: {text}", "allow_abbrev": False} for name, text in EXAMPLES.items()},
        },
        auto_configure_optimizers=False,  # the module has options for them
        run=run,
        args=arguments,
    )
