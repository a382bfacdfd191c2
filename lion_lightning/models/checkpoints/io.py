"""Checkpoints of a Trainer: written in full or not at all, and read as plain tensors and data once they are checked."""

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
from lion_lightning.models.checkpoints.files import SEAL, damage, require_local, require_whole, said
from lion_lightning.models.checkpoints.folders import is_folder, stored_names
from lion_lightning.processes.stopping import delayed_signals


def use_checked_checkpoints(strategy: Strategy) -> None:
    """Let a Trainer's strategy write checkpoints that are never half there, and read none that is not what was written.

    A ``checkpoint_io`` plugin of the user's own stays, and does that in its own way.

    Args:
        strategy: Of any Trainer; more than once does no harm.
    """
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = CheckedCheckpointIO()
    sharded = isinstance(strategy, FSDPStrategy | ModelParallelStrategy)  # these go past the plugin
    if sharded and not isinstance(getattr(strategy.load_checkpoint, "__self__", None), _CheckedFolders):
        checked = _CheckedFolders(strategy)
        strategy.save_checkpoint = checked.save_checkpoint  # type: ignore[method-assign]
        strategy.load_checkpoint = checked.load_checkpoint  # type: ignore[method-assign]


def remove_stale_run_files(trainer: Trainer) -> None:
    """Remove what killed runs have left of files under the trainer's root folder, and of its checkpoints.

    Drafts of checkpoints that are folders stay until the next is saved: one of them may be all that there is.

    Args:
        trainer: On rank 0, before it trains.
    """
    root = Path(trainer.default_root_dir)
    remove_stale_files(root, root / "rounds", root / "evaluation", *root.glob("lightning_logs/*"))
    saved = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
    remove_stale_files(*(Path(folder) for folder in saved if folder and "://" not in str(folder)), files_only=True)


class CheckedCheckpointIO(TorchCheckpointIO):
    """Single files, straight to disk: Lightning's plugin makes each in memory first, and again in the temporary folder.

    A file is written next to its place, synced and renamed; a signal waits for that. It is what ``torch.save`` writes,
    any tool reads it.
    """

    @delayed_signals()
    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path | str, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: It cannot be written; the error names it.
        """
        if "://" in str(path) or storage_options is not None:  # fsspec's business
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(place) as temporary:
            _write(checkpoint, temporary)
        remove_stale_files(place.parent)

    @override
    def load_checkpoint(
        self, path: Path | str, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, as plain tensors and data unless ``weights_only`` is False.

        Raises:
            ValueError: It is an address, not there, damaged, no checkpoint, or a folder that ranks wrote together.
        """
        if is_folder(require_local(path)):
            raise ValueError(
                f"{path}: a checkpoint that ranks wrote in pieces; resume with the strategy that wrote it "
                "(configs/strategy/fsdp2.yaml or fsdp.yaml), or make a model of it with `lion export`"
            )
        try:
            checkpoint = torch.load(require_whole(path), map_location or "cpu", weights_only=weights_only is not False)
        except Exception as error:
            raise _unreadable(path, error) from error
        return require_training(path, checkpoint)


def require_training(path: Path | str, checkpoint: Any) -> dict[str, Any]:
    """A checkpoint that Lightning can restore something from.

    Args:
        path: Where it lies.
        checkpoint: What was read.

    Raises:
        ValueError: It is another thing that torch saved, e.g. a bare state dict.
    """
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(
            f"{path}: not a checkpoint of Lightning's, it holds no `state_dict`; to start from a model's weights, name "
            "its Hugging Face folder in `policy.path`"
        )
    return checkpoint


class _CheckedFolders:
    """Stands between a trainer and a strategy whose ranks write a folder together, or a file that they gather."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy: Any = strategy
        self._save, self._load = strategy.save_checkpoint, strategy.load_checkpoint

    @delayed_signals()
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Path | str, storage_options: Any = None) -> None:
        """Write a folder under another name that all ranks know, then rename it; all ranks call this."""
        if not _writes_folders(self.strategy):
            self._save(checkpoint, filepath, storage_options)  # rank 0 does, by the plugin
            return
        first, place = self.strategy.is_global_zero, Path(self.strategy.broadcast(filepath))
        with atomic_folder(place) if first else nullcontext() as temporary:
            temporary = Path(self.strategy.broadcast(temporary))
            self._save(checkpoint, temporary, storage_options)
            self.strategy.barrier()
            if first:
                (temporary / SEAL).write_text(checksum(temporary / ".metadata"), "ascii")
        self.strategy.barrier()
        if first:
            remove_stale_files(place.parent)

    def load_checkpoint(self, checkpoint_path: Path | str, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint that the ranks have checked together, each a share of it; all ranks call this.

        What lies in a folder as bytes, or in a file, is read once with ``weights_only`` before the strategy reads it:
        Lightning and torch do so with pickle.

        Raises:
            ValueError: On every rank, if it is an address, not there, damaged, or holds more than plain data.
        """
        path = Path(self.strategy.broadcast(checkpoint_path))
        own = self._problem(path, plain=weights_only is not False)
        if problems := [problem for problem in Ranks.of(self.strategy).all_gather(own) if problem]:
            raise ValueError(problems[0])
        return self._load(path, weights_only is not False)

    def _problem(self, path: Path, plain: bool) -> str | None:
        """What keeps this rank's share of a checkpoint from being read."""
        try:
            if not require_local(path).exists():
                require_whole(path)
            if problem := damage(path, self.strategy.global_rank, self.strategy.world_size):
                return f"{path}: not a readable checkpoint ({problem}); give another one"
            if path.is_dir() and self.strategy.optimizers and not _has_optimizer(path):
                return f"{path} holds the weights alone, so training cannot go on from it; give another one"
            if plain and path.is_file() and self.strategy.is_global_zero:
                require_training(path, torch.load(path, "cpu", weights_only=True, mmap=True))
        except Exception as error:
            return str(_unreadable(path, error))
        return None


def _has_optimizer(folder: Path) -> bool:
    return any(name.startswith("optimizer_") for name in stored_names(folder))


def _writes_folders(strategy: Any) -> bool:
    """Whether ranks write their shards, by Lightning's own names for it in either strategy."""
    return getattr(strategy, "_save_distributed_checkpoint", False) or (
        getattr(strategy, "_state_dict_type", None) == "sharded"
    )


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    """Save to a file; torch says of a full disk only that a write failed.

    Raises:
        OSError: In place of torch's RuntimeError, as the disk said it.
    """
    with path.open("wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            cause = error.__context__
            raise (cause if isinstance(cause, OSError) else error) from None


def _unreadable(path: Path | str, error: Exception) -> Exception:
    """An error of one line that names the checkpoint, for whatever torch makes of one that it cannot read."""
    if isinstance(error, ValueError) and str(path) in str(error):
        return error
    return ValueError(f"{path}: not a readable checkpoint ({said(error)})")
