"""What a checkpoint holds of a policy, whether it is one file or a folder that ranks wrote together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from lion_lightning.models.checkpoints.files import require_whole, said
from lion_lightning.models.checkpoints.folders import META, FolderReader

PREFIX = "policy.model."
"""Where a module's ``state_dict`` keeps the policy's weights."""

_STATES = {f"{name}.{PREFIX}": name for name in ("state_dict", "model")}  # as FSDP2 and FSDPStrategy write it


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The policy's weights and all plain data of a checkpoint, on the CPU; no optimizer states of a folder.

    Args:
        path: A ``.ckpt`` file or folder.

    Raises:
        ValueError: If there is none, or it cannot be read as plain tensors and data.
    """
    require_whole(path)
    try:
        checkpoint: Any = torch.load(
            path if path.is_file() else path / META, map_location="cpu", weights_only=True, mmap=path.is_file()
        )
        if path.is_dir():
            checkpoint = checkpoint | {"state_dict": _policy_weights(path)}
    except Exception as error:
        raise ValueError(f"{path}: not a readable checkpoint ({said(error)})") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"{path}: not a checkpoint of Lightning's: it holds no `state_dict`")
    return checkpoint


def _policy_weights(folder: Path) -> dict[str, Tensor]:
    reader = FolderReader(folder)
    entries = reader.read_metadata().state_dict_metadata
    state = next(state for prefix, state in _STATES.items() if any(name.startswith(prefix) for name in entries))
    weights = {
        name.removeprefix(f"{state}."): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if name.startswith(f"{state}.{PREFIX}") and isinstance(entry, TensorStorageMetadata)
    }
    load({state: weights}, storage_reader=reader, no_dist=True)
    return weights
