"""What a checkpoint holds of a policy, whether it is one file or a folder that ranks wrote together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

PREFIX = "policy.model."
"""Where a module's ``state_dict`` keeps the policy's weights."""

_META = "meta.pt"  # Lightning's name for what is no tensor of model or optimizer
_STATES = {f"{name}.{PREFIX}": name for name in ("state_dict", "model")}  # as FSDP2 and FSDPStrategy write it


def is_folder(path: Path) -> bool:
    """Whether a path is a checkpoint of Lightning's that each rank wrote its part of."""
    return (path / _META).is_file() and (path / ".metadata").is_file()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The policy's weights and all plain data of a checkpoint, on the CPU; no optimizer states of a folder.

    Args:
        path: A ``.ckpt`` file or folder.

    Raises:
        ValueError: If there is none, or it cannot be read as plain tensors and data.
    """
    if not path.is_file() and not is_folder(path):
        raise ValueError(
            f"{path}: no such checkpoint; give a .ckpt file or folder, e.g. runs/sft/checkpoints/last.ckpt"
        )
    try:
        checkpoint: dict[str, Any] = torch.load(
            path if path.is_file() else path / _META, map_location="cpu", weights_only=True, mmap=path.is_file()
        )
        return checkpoint if path.is_file() else checkpoint | {"state_dict": _policy_weights(path)}
    except Exception as error:
        raise ValueError(f"{path}: not a readable checkpoint ({str(error).splitlines()[0]})") from error


def _policy_weights(folder: Path) -> dict[str, Tensor]:
    reader = FileSystemReader(folder)
    entries = reader.read_metadata().state_dict_metadata
    state = next(state for prefix, state in _STATES.items() if any(name.startswith(prefix) for name in entries))
    weights = {
        name.removeprefix(f"{state}."): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if name.startswith(f"{state}.{PREFIX}") and isinstance(entry, TensorStorageMetadata)
    }
    load({state: weights}, storage_reader=reader, no_dist=True)
    return weights
