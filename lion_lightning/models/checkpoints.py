"""What a checkpoint holds of a policy, whether it is one file or a folder that ranks wrote together."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

PREFIX = "policy.model."
"""Where a module's ``state_dict`` keeps the policy's weights."""

_META = "meta.pt"  # Lightning's name for what is no tensor of model or optimizer
_STATES = {f"{name}.{PREFIX}": name for name in ("state_dict", "model")}  # as FSDP2 and FSDPStrategy write it


_CLASSES = {
    *(("pathlib", name) for name in ("PosixPath", "WindowsPath")),
    *(("pathlib._local", name) for name in ("PosixPath", "WindowsPath")),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    *(("torch.distributed.checkpoint.filesystem", name) for name in ("_StorageInfo", "_StoragePrefix")),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}
"""What torch writes into a folder's ``.metadata``, beside dtypes."""


class FolderReader(FileSystemReader):
    """Reads a folder that ranks wrote together; its ``.metadata`` is a pickle, of which nothing else is let in."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What is in the folder (torch calls this).

        Raises:
            pickle.UnpicklingError: There is more in it than torch writes, e.g. code to run.
        """
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata: Metadata = _PlainUnpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """A class that torch writes there, or a dtype; anything else is refused (pickle calls this)."""
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and (module, name) not in _CLASSES:
            raise pickle.UnpicklingError(f"its .metadata asks for {module}.{name}, which torch does not write there")
        return super().find_class(module, name)


def is_folder(path: Path) -> bool:
    """Whether a path is a checkpoint of Lightning's that each rank wrote its part of."""
    return (path / _META).is_file() and (path / ".metadata").is_file()


def stored_names(folder: Path) -> list[str]:
    """Names of what a folder holds, after ``state_dict.`` or ``model.``.

    Args:
        folder: See :func:`is_folder`.

    Raises:
        ValueError: Its list cannot be read.
    """
    try:
        return list(FolderReader(folder).read_metadata().state_dict_metadata)
    except Exception as error:
        raise ValueError(f"{folder}: not a readable checkpoint ({str(error).splitlines()[0]})") from error


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
