"""Sharded checkpoints: folders that all ranks wrote together, with a pickled list of their tensors."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from typing_extensions import override

META = "meta.pt"
"""Lightning's file, within a folder, for all but the tensors of model and optimizer; it is written last."""

PREFIX = "policy.model."
"""Prefix of the policy's weights in a module's ``state_dict``."""

_CLASSES = {
    "pathlib": ("PosixPath", "WindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath"),
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
}
"""Classes that torch writes into ``.metadata``, by module, dtypes apart."""


class FolderReader(FileSystemReader):
    """Torch's reader of a folder, but for ``.metadata``: of that pickle, only torch's own classes are unpickled."""

    @override
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The list of what the folder holds."""
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata: Metadata = _PlainUnpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _PlainUnpickler(pickle.Unpickler):
    @override
    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in _CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"its .metadata asks for {module}.{name}, which torch does not write there")
        return super().find_class(module, name)


def is_folder(path: Path) -> bool:
    """True for a sharded checkpoint that was written to the end."""
    return (path / META).is_file() and (path / ".metadata").is_file()


def stored_names(folder: Path) -> list[str]:
    """Names of all that a folder holds, with the prefix ``state_dict.`` or ``model.``."""
    try:
        return list(FolderReader(folder).read_metadata().state_dict_metadata)
    except Exception as error:
        raise ValueError(f"{folder}: not a readable checkpoint ({error})") from error


def read_policy_weights(folder: Path) -> dict[str, Tensor]:
    """The policy's full weights on the CPU, by their names in the module's ``state_dict``."""
    reader = FolderReader(folder)
    entries = reader.read_metadata().state_dict_metadata
    is_fsdp2 = any(name.startswith(f"state_dict.{PREFIX}") for name in entries)
    state = "state_dict" if is_fsdp2 else "model"  # as FSDPStrategy writes it
    weights = {}
    for name, entry in entries.items():
        if name.startswith(f"{state}.{PREFIX}") and isinstance(entry, TensorStorageMetadata):
            weights[name.removeprefix(f"{state}.")] = torch.empty(entry.size, dtype=entry.properties.dtype)
    load({state: weights}, storage_reader=reader, no_dist=True)
    return weights
