"""The commands that a config drives (``lion fit -c ...``): LightningCLI with this project's defaults."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lion_lightning.callbacks import LionProgressBar, StartupSummary
from lion_lightning.models.checkpoints.files import newest_checkpoint, require_local
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.printing import require_no_secrets
from lion_lightning.tools.train.config_file import check_config_files
from lion_lightning.tools.train.metrics_log import LogShortRuns, MetricsLog
from lion_lightning.tools.train.null_settings import require_values
from lion_lightning.tools.train.stopping import FolderInUse, StopBetweenSteps

CONFIG_KEYS: Mapping[str, Collection[str] | None] = {
    "seed_everything": None,
    "trainer": tuple(signature(Trainer).parameters),
    "model": None,
    "data": None,
    "verbose": None,
    "ckpt_path": None,
    "weights_only": None,
}
"""What a config file may hold at the top; of ``trainer``, what it may hold below."""

_EXAMPLES = {"model": "lion_lightning.SFTModule", "data": "lion_lightning.SFTDataModule"}


class LionCLI(LightningCLI):
    """Runs any ``AlignmentModule`` with any data module; the tokenizer is written once, in the model."""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Give the data module the model's tokenizer."""
        parser.link_arguments("model", "data.init_args.tokenizer", compute_fn=_tokenizer_spec, apply_on="instantiate")

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        """All subcommands of LightningCLI but ``predict``, for which alignment modules have no step."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name != "predict"}

    @override
    def before_instantiate_classes(self) -> None:
        """Refuse a config that names no class, holds a secret, or a null for a value.

        Without a class the parser would make an empty base class. Of secrets, config files are searched when they are
        read; here come those of the command line.
        """
        require_no_secrets(self.config.as_dict())
        for part, base in (("model", AlignmentModule), ("data", LightningDataModule)):
            if str(self._get(self.config, f"{part}.class_path")).rpartition(".")[2] == base.__name__:
                raise ValueError(f"{part}: no class_path is given; name the class, e.g. {_EXAMPLES[part]}")
        config = self.config.as_dict()
        own = config[self.subcommand] if self.subcommand else config
        require_values({name: own[name] for name in ("model", "data")}, None)
        require_values(own["trainer"], Trainer, "trainer")

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Log, show progress and sum up the start, where the config does not say otherwise."""
        given = self._get(self.config_init, "trainer", default={})
        if given.get("logger") in (None, True):
            kwargs["logger"] = default_loggers(given.get("default_root_dir") or os.getcwd())
        # Without a folder of its own, many runs share the working folder.
        lock = [FolderInUse()] if given.get("default_root_dir") else []
        logs = [LogShortRuns()] if given.get("log_every_n_steps") is None else []
        own = given.get("callbacks") or ()
        kwargs["callbacks"] = [StopBetweenSteps(), *lock, *logs, *own, *default_callbacks(given)]
        kwargs["enable_model_summary"] = bool(given.get("enable_model_summary"))
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Find what `--ckpt_path last` means (Lightning calls this)."""
        self._choose_checkpoint()

    def before_validate(self) -> None:
        """The same, and say which model it is (Lightning calls this)."""
        self._choose_checkpoint()
        self._say_untrained()

    def before_test(self) -> None:
        """The same (Lightning calls this)."""
        self._choose_checkpoint()
        self._say_untrained()

    def _say_untrained(self) -> None:
        if self.config_init[self.subcommand].get("ckpt_path") is None:
            rank_zero_info(
                "The model is the one that the config starts from; --ckpt_path last takes what `lion fit` has trained."
            )

    def after_validate(self) -> None:
        """Refuse to have measured nothing (Lightning calls this)."""
        _require_batches(self.trainer.num_val_batches, "limit_val_batches")

    def after_test(self) -> None:
        """The same (Lightning calls this)."""
        _require_batches(self.trainer.num_test_batches, "limit_test_batches")

    def _choose_checkpoint(self) -> None:
        """The newest whole one for ``last``: Lightning takes ``last*.ckpt`` as they are, or starts anew without any."""
        given = self.config_init[self.subcommand]
        if given.get("ckpt_path") == "last":
            found = newest_checkpoint(*checkpoint_places(self.trainer))
            if found is None and self.subcommand != "fit":
                raise ValueError("ckpt_path: there is no checkpoint yet that `last` could mean; train first")
            if found is None:
                rank_zero_info("There is no checkpoint yet: starting from the beginning.")
            given["ckpt_path"] = found and str(found)
        elif given.get("ckpt_path") is not None:
            require_local(given["ckpt_path"])

    @override
    def _set_seed(self) -> None:
        """Seed; Lightning's complaint does not say which key it is about."""
        try:
            super()._set_seed()
        except ValueError as error:
            raise ValueError(f"seed_everything: {error}") from error

    @override
    def _parse_ckpt_path(self) -> None:
        """Leave the config as it was given: Lightning would replace it by the checkpoint's, without a word."""


def _require_batches(counts: Sequence[float], limit: str) -> None:
    """Refuse a pass over no rows, which would end as if all were well."""
    if not sum(counts):
        raise ValueError(
            "there are no rows to measure on: give data.validation or data.validation_share (and no "
            f"trainer.{limit}: 0)"
        )


def checkpoint_places(trainer: Trainer) -> list[Path]:
    """Folders and files that a trainer's checkpoints may lie in; earlier starts' where each start has its own.

    Args:
        trainer: With its callbacks.
    """
    places = sorted(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))  # what Lightning writes under SLURM
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            places.append(Path(callback.dirpath))
        elif isinstance(callback, ModelCheckpoint):
            logged = [Path(logger.save_dir or trainer.default_root_dir, str(logger.name)) for logger in trainer.loggers]
            places += [folder for logs in logged for folder in sorted(logs.glob("*/checkpoints"))]
            places.append(Path(trainer.default_root_dir, "checkpoints"))
        elif isinstance(callback, OnExceptionCheckpoint):
            places.append(Path(callback.ckpt_path))
    return places


def default_loggers(folder: str) -> list[Logger]:
    """Metrics as ``metrics.csv``, which `lion report` reads, and for TensorBoard: both in one folder a start.

    Args:
        folder: The trainer's ``default_root_dir``.
    """
    table = MetricsLog(folder)
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


def build_cli(arguments: list[str], run: bool = True, kind: type[LionCLI] = LionCLI) -> LionCLI:
    """Parse arguments into a model, a data module and a trainer, and run the subcommand among them.

    Args:
        arguments: Command line, with a subcommand if ``run``.
        run: Whether to run it.
        kind: What parses.
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
        },
        auto_configure_optimizers=False,
        run=run,
        args=arguments,
    )


def _tokenizer_spec(model: AlignmentModule) -> Any:
    return model.tokenizer_spec
