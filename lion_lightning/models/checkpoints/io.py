"""A Trainer's checkpoints: written atomically, and checked before they are read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from typing_extensions import override

from lion_lightning.cache import atomic_folder, atomic_write, checksum, remove_stale_files
from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.checkpoints.files import (
    SEAL,
    damage,
    require_checkpoint,
    require_lightning,
    require_local,
    unreadable,
)
from lion_lightning.models.checkpoints.folders import is_folder, stored_names
from lion_lightning.processes.stopping import delayed_signals


def use_checked_checkpoints(strategy: Strategy) -> None:
    """Let a Trainer's strategy write checkpoints atomically, and check them before it reads them.

    A ``checkpoint_io`` plugin of the user's stays.
    """
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = CheckedCheckpointIO()
    sharded = isinstance(strategy, FSDPStrategy | ModelParallelStrategy)  # these do not ask the plugin
    if sharded and not isinstance(getattr(strategy.load_checkpoint, "__self__", None), _CheckedFolders):
        checked = _CheckedFolders(strategy)
        strategy.save_checkpoint = checked.save_checkpoint  # type: ignore[method-assign]
        strategy.load_checkpoint = checked.load_checkpoint  # type: ignore[method-assign]


def remove_stale_run_files(trainer: Trainer) -> None:
    """Remove the temporary files that killed runs left in the trainer's root folder and next to its checkpoints.

    Temporary checkpoint folders stay until the next save: one of them may be the only checkpoint.
    """
    root = Path(trainer.default_root_dir)
    remove_stale_files(root, root / "rounds", root / "evaluation", *root.glob("lightning_logs/*"))
    saved = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
    remove_stale_files(*(Path(folder) for folder in saved if folder and "://" not in str(folder)), files_only=True)


class CheckedCheckpointIO(TorchCheckpointIO):
    """Single files, as ``torch.save`` writes them: streamed to a temporary file next to the target, synced and renamed.

    Lightning's own plugin makes each in memory first. A signal waits until a file is written.
    """

    @delayed_signals()
    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path | str, storage_options: Any = None) -> None:
        if "://" in str(path) or storage_options is not None:  # left to fsspec
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as temporary, temporary.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # of a full disk torch says only that a write failed
                cause = error.__context__
                raise (cause if isinstance(cause, OSError) else error) from None
        remove_stale_files(target.parent)

    @override
    def load_checkpoint(
        self, path: Path | str, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, as plain tensors and data unless ``weights_only`` is False.

        Raises:
            ValueError: It is an address, missing, damaged, not a checkpoint, or a sharded one.
        """
        if is_folder(require_local(path)):
            raise ValueError(
                f"{path}: a sharded checkpoint; resume with the strategy that wrote it "
                "(configs/strategy/fsdp2.yaml or fsdp.yaml), or turn it into a model with `lion export`"
            )
        try:
            found = require_checkpoint(path)
            checkpoint = torch.load(found, map_location or "cpu", weights_only=weights_only is not False)
        except Exception as error:
            raise unreadable(path, error) from error
        return require_lightning(path, checkpoint)


class _CheckedFolders:
    """Stands between a Trainer and a sharding strategy, whose ranks write a folder together, or gather one file."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy: Any = strategy
        self._save, self._load = strategy.save_checkpoint, strategy.load_checkpoint

    @delayed_signals()
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Path | str, storage_options: Any = None) -> None:
        """Write a temporary folder that all ranks know by name, then rename it; all ranks call this."""
        # Lightning 2.6's private names, in either strategy, for ranks that write shards.
        fsdp2_folder = getattr(self.strategy, "_save_distributed_checkpoint", False)
        if not fsdp2_folder and getattr(self.strategy, "_state_dict_type", None) != "sharded":
            self._save(checkpoint, filepath, storage_options)  # rank 0 writes, through the plugin
            return
        ranks = Ranks.of(self.strategy)
        target = Path(ranks.broadcast(filepath))
        with atomic_folder(target) if ranks.is_first else nullcontext() as temporary:  # rank 0 makes and renames it
            temporary = Path(ranks.broadcast(temporary))
            self._save(checkpoint, temporary, storage_options)
            ranks.barrier()
            if ranks.is_first:
                (temporary / SEAL).write_text(checksum(temporary / ".metadata"), "ascii")
        ranks.barrier()
        if ranks.is_first:
            remove_stale_files(target.parent)

    def load_checkpoint(self, checkpoint_path: Path | str, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint once all ranks have checked it, each a share; all ranks call this.

        The check reads with ``weights_only`` whatever torch and Lightning then unpickle.

        Raises:
            ValueError: On every rank, if it is an address, missing, damaged, or holds more than plain data.
        """
        ranks = Ranks.of(self.strategy)
        path = Path(ranks.broadcast(checkpoint_path))
        problems = ranks.all_gather(self._problem(path, ranks, plain=weights_only is not False))
        for problem in problems:
            if problem is not None:
                raise ValueError(problem)
        return self._load(path, weights_only is not False)

    def _problem(self, path: Path, ranks: Ranks, plain: bool) -> str | None:
        """Why this rank's share of a checkpoint cannot be read."""
        try:
            if not require_local(path).exists():
                require_checkpoint(path)
            if problem := damage(path, ranks.rank, ranks.size):
                return f"{path}: not a readable checkpoint ({problem}); give another one"
            training = path.is_dir() and self.strategy.optimizers
            if training and not any(name.startswith("optimizer_") for name in stored_names(path)):
                return f"{path} holds only weights, so training cannot resume from it; give another one"
            if plain and path.is_file() and ranks.is_first:
                require_lightning(path, torch.load(path, "cpu", weights_only=True, mmap=True))
        except Exception as error:
            return str(unreadable(path, error))
        return None
