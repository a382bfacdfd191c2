"""Checkpoints on disk: the newest that is intact, and its content, read only after its checksums."""

from __future__ import annotations

import io
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from lion_lightning.cache import checksum
from lion_lightning.errors import first_line
from lion_lightning.models.checkpoints.folders import META, FolderReader, is_folder, read_policy_weights

SEAL = "metadata.crc32"
"""File in a folder with the checksum of its ``.metadata``, the only part that torch writes without one."""


def require_local(path: Path | str) -> Path:
    """Require a path on this machine.

    Raises:
        ValueError: It is an address: its content could not be checked before it is read.
    """
    if "://" in str(path) or "::" in str(path):
        raise ValueError(f"{path}: an address, and checkpoints are read from disk only; download it and name the file")
    return Path(path)


def require_checkpoint(path: Path | str) -> Path:
    """Require an intact checkpoint, file or folder.

    Raises:
        ValueError: It is an address, missing, damaged or not a checkpoint.
    """
    found = require_local(path)
    if not found.exists():
        raise ValueError(
            f"{path}: no such checkpoint; give a .ckpt file or folder, e.g. runs/sft/checkpoints/last.ckpt"
        )
    if problem := damage(found):
        raise ValueError(f"{path}: not a readable checkpoint ({problem}); give another one")
    return found


def require_lightning(path: Path | str, checkpoint: Any) -> dict[str, Any]:
    """Require a checkpoint that Lightning wrote."""
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(
            f"{path}: not a checkpoint of Lightning's, it holds no `state_dict`; to start from a model's weights, name "
            "its Hugging Face folder in `policy.path`"
        )
    return checkpoint


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The plain data and the policy's weights in a checkpoint, on the CPU; a folder's optimizer states are skipped.

    Raises:
        ValueError: It is not an intact checkpoint, or holds more than tensors and plain data.
    """
    require_checkpoint(path)
    try:
        file = path if path.is_file() else path / META
        checkpoint: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=path.is_file())
        if path.is_dir():
            checkpoint = checkpoint | {"state_dict": read_policy_weights(path)}
    except Exception as error:
        raise unreadable(path, error) from error
    return require_lightning(path, checkpoint)


def unreadable(path: Path | str, error: Exception) -> ValueError:
    """The one-line error for a checkpoint that torch cannot read; a ValueError that names it is returned as it is."""
    if isinstance(error, ValueError) and str(path) in str(error):
        return error
    return ValueError(f"{path}: not a readable checkpoint ({_reason(error)}); give another one")


def _reason(error: Exception) -> str:
    if str(error).startswith("Weights only load failed"):  # torch goes on with how to run the file's code
        return "it holds more than tensors and plain data, which could run code"
    return first_line(error)


def newest_checkpoint(*folders: Path | str) -> Path | None:
    """The newest intact checkpoint in some folders, whatever its name; None if there is no checkpoint at all.

    ``trainer.fit(module, data, ckpt_path=newest_checkpoint("runs/sft/checkpoints"))`` resumes a killed run, even if
    ``last.ckpt`` is missing, damaged or a dangling link.

    Args:
        folders: Folders of checkpoints, not searched further down; or checkpoints themselves.

    Raises:
        ValueError: There are checkpoints, and none of them is intact.
    """
    found: dict[Path, None] = {}  # each once, whatever links to it
    for folder in map(Path, folders):
        inside = [folder] if folder.suffix == ".ckpt" else sorted(folder.glob("*.ckpt"))
        shown = [path for path in inside if not path.name.startswith(".")]
        # Hidden temporary folders only where there is nothing else.
        for path in shown or filter(is_folder, inside):
            found[path.resolve() if path.exists() else path] = None
    problems: list[str] = []
    for path in sorted(found, key=_written, reverse=True):
        problem = damage(path)
        if problem is None:
            if problems:
                rank_zero_warn(f"Resuming from {path}, the newest intact checkpoint: {'; '.join(problems)}.")
            return path
        problems.append(f"{path}: {problem}")
    if problems:
        raise ValueError(
            f"no checkpoint to resume from is intact ({'; '.join(problems)}); bring one back, or remove them to start "
            "from the beginning"
        )
    return None


def _written(path: Path) -> tuple[float, str]:
    """Time of writing as stored in the checkpoint: copying changes that of the file."""
    try:
        content = torch.load(path / META if path.is_dir() else path, "cpu", weights_only=True, mmap=path.is_file())
        return float(content["lion"]["written"]), path.name
    except Exception:  # damaged, or not written by this package
        return path.stat().st_mtime if path.exists() else 0.0, path.name


def damage(path: Path, rank: int = 0, size: int = 1) -> str | None:
    """Damage to the bytes of a checkpoint, in a few words; None if it is intact.

    Torch stores a CRC-32 with every record and never checks it. This does, which finds any flipped bit in a third of a
    second per GB. The records of a file are not unpickled here. Those of a folder must be plain data, since torch and
    Lightning unpickle some of them.

    Args:
        path: File or folder.
        rank: Share of a folder's records to read, from 0; rank 0 reads a file.
        size: Number of shares.
    """
    if not path.exists():
        return "a link to a file that is gone" if path.is_symlink() else "it is not there"
    if path.is_dir():
        return _folder_damage(path, rank, size)
    status = path.stat()
    return _file_damage(path, status.st_size, status.st_mtime_ns) if rank == 0 else None


@lru_cache(maxsize=64)
def _file_damage(path: Path, size: int, modified: int) -> str | None:
    """Cached, as long as the file's size and time stay."""
    if size == 0:
        return "it is empty"
    with path.open("rb") as file:
        return _record_damage(file)


def _folder_damage(folder: Path, rank: int, size: int) -> str | None:
    if not is_folder(folder):
        return "a folder that holds no checkpoint, or one whose writing was cut short"
    seal = folder / SEAL
    if seal.exists() and seal.read_text("ascii", errors="replace").strip() != checksum(folder / ".metadata"):
        return "its .metadata is not what was written"
    try:
        metadata = FolderReader(folder).read_metadata()
        if rank == 0:
            if problem := damage(folder / META):
                return f"{META}: {problem}"
            torch.load(folder / META, "cpu", weights_only=True)
        for index, record in sorted(metadata.storage_data.items(), key=repr)[rank::size]:
            content = _read_record(folder, record)
            if problem := _record_damage(io.BytesIO(content)):
                return f"{record.relative_path}, {index.fqn}: {problem}"
            if isinstance(metadata.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
                torch.load(io.BytesIO(content), "cpu", weights_only=True)
    except Exception as error:
        return _reason(error)
    return None


def _read_record(folder: Path, record: Any) -> bytes:
    if Path(record.relative_path).name != record.relative_path:
        raise ValueError(f"its .metadata names a file outside of it, {record.relative_path}")
    with (folder / record.relative_path).open("rb") as file:
        file.seek(int(record.offset))
        return bytes(file.read(int(record.length)))


def _record_damage(file: Any) -> str | None:
    """Damage to a record of ``torch.save``, which is an uncompressed zip archive."""
    try:
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return "it was not written by torch"
            bad = archive.testzip()
            return f"its record {bad} is not what was written" if bad else None
    except zipfile.BadZipFile:
        return "it is cut short or changed, or not a checkpoint"
    except Exception as error:  # zipfile may fail in any way on damaged bytes
        return f"it is changed, or not a checkpoint: {type(error).__name__}"
