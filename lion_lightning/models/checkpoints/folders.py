"""Checkpoints that ranks wrote together: folders of tensors, found through a list that is itself a pickle."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from typing_extensions import override

META = "meta.pt"
"""Lightning's name, in a folder, for what is no tensor of model or optimizer; it is written last."""


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

    @override
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
    @override
    def find_class(self, module: str, name: str) -> Any:
        """A class that torch writes there, or a dtype; anything else is refused (pickle calls this)."""
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and (module, name) not in _CLASSES:
            raise pickle.UnpicklingError(f"its .metadata asks for {module}.{name}, which torch does not write there")
        return super().find_class(module, name)


def is_folder(path: Path) -> bool:
    """Whether a path is a checkpoint of Lightning's that each rank wrote its part of."""
    return (path / META).is_file() and (path / ".metadata").is_file()


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
        raise ValueError(f"{folder}: not a readable checkpoint ({error})") from error
