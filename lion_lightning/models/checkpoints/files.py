"""Whether a checkpoint on disk is what was written, found by the checksums in it, and which is the newest that is."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from lion_lightning.cache import checksum
from lion_lightning.errors import first_line
from lion_lightning.models.checkpoints.folders import META, FolderReader, is_folder

SEAL = "metadata.crc32"
"""File of a folder with the checksum of its ``.metadata``, the only part that torch writes without one."""


def require_local(path: Path | str) -> Path:
    """A path on this machine's disks.

    Raises:
        ValueError: It is an address. What lies there could not be checked before it is read.
    """
    if "://" in str(path) or "::" in str(path):
        raise ValueError(f"{path}: an address, and checkpoints are read from disk only; download it and name the file")
    return Path(path)


def require_whole(path: Path | str) -> Path:
    """A checkpoint, file or folder, that is what was written.

    Raises:
        ValueError: It is an address, is not there, is damaged or is no checkpoint.
    """
    found = require_local(path)
    if not found.exists():
        raise ValueError(
            f"{path}: no such checkpoint; give a .ckpt file or folder, e.g. runs/sft/checkpoints/last.ckpt"
        )
    if problem := damage(found):
        raise ValueError(f"{path}: not a readable checkpoint ({problem}); give another one")
    return found


def damage(path: Path, rank: int = 0, world: int = 1) -> str | None:
    """What is wrong with a checkpoint's bytes, in a few words; None if they are those that were written.

    torch keeps the CRC-32 of every record that it writes, and never looks at it. It finds any flipped bit; reading a
    file takes about a third of a second per GB. What a file's records hold is not looked at here; a folder's must be
    plain data, since torch and Lightning read some of them with pickle.

    Args:
        path: File or folder.
        rank: Which share of a folder's records to read; a file is read by the first rank.
        world: Number of shares.
    """
    if not path.exists():
        return "a link to a file that is gone" if path.is_symlink() else "it is not there"
    if path.is_dir():
        return _folder_damage(path, rank, world)
    status = path.stat()
    return _file_damage(path, status.st_size, status.st_mtime_ns) if rank == 0 else None


def said(error: BaseException) -> str:
    """What an error says, on one line."""
    if str(error).startswith("Weights only load failed"):  # torch goes on with how to run the file's code
        return "it holds more than tensors and plain data, which could run code"
    return first_line(error)


def newest_checkpoint(*folders: Path | str) -> Path | None:
    """The newest whole checkpoint of some folders, whatever its name; None if there is none at all.

    ``trainer.fit(module, data, ckpt_path=newest_checkpoint("runs/sft/checkpoints"))`` goes on where a killed run
    stopped, also where ``last.ckpt`` is missing, damaged or a link to a file that is gone.

    Args:
        folders: Where checkpoints lie, not within further folders; a checkpoint itself also does.

    Raises:
        ValueError: There are checkpoints, and none of them is whole.
    """
    found = sorted(_candidates(map(Path, folders)), key=_written, reverse=True)
    problems: list[str] = []
    for path in found:
        problem = damage(path)
        if problem is None:
            if problems:
                rank_zero_warn(f"Going on from {path}, the newest checkpoint that is whole: {'; '.join(problems)}.")
            return path
        problems.append(f"{path}: {problem}")
    if problems:
        raise ValueError(
            f"no checkpoint to go on from is whole ({'; '.join(problems)}); bring one back, or remove them to start "
            "anew"
        )
    return None


def _candidates(folders: Iterable[Path]) -> Sequence[Path]:
    """Checkpoints behind any names, each once; temporary ones only where nothing else is left in a folder."""
    found: dict[Path, None] = {}
    for folder in folders:
        inside = [folder] if folder.suffix == ".ckpt" else sorted(folder.glob("*.ckpt"))
        shown = [path for path in inside if not path.name.startswith(".")]
        for path in shown or [path for path in inside if is_folder(path)]:
            found[path.resolve() if path.exists() else path] = None
    return list(found)


def _written(path: Path) -> tuple[float, str]:
    """When a checkpoint was written: it says so itself, since copying changes the files' times."""
    try:
        content = torch.load(path / META if path.is_dir() else path, "cpu", weights_only=True, mmap=path.is_file())
        return float(content["lion"]["written"]), path.name
    except Exception:  # damaged, or of another make
        return path.stat().st_mtime if path.exists() else 0.0, path.name


@lru_cache(maxsize=64)
def _file_damage(path: Path, size: int, modified: int) -> str | None:
    """Read a file once a process, as long as its size and time of change stay."""
    if size == 0:
        return "it is empty"
    with path.open("rb") as file:
        return _record_damage(file)


def _folder_damage(folder: Path, rank: int, world: int) -> str | None:
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
        for index, place in sorted(metadata.storage_data.items(), key=repr)[rank::world]:
            content = _slice(folder, place)
            if problem := _record_damage(io.BytesIO(content)):
                return f"{place.relative_path}, {index.fqn}: {problem}"
            if isinstance(metadata.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
                torch.load(io.BytesIO(content), "cpu", weights_only=True)
    except Exception as error:
        return said(error)
    return None


def _slice(folder: Path, place: Any) -> bytes:
    """Bytes of one record; only files of the folder itself are opened."""
    if Path(place.relative_path).name != place.relative_path:
        raise ValueError(f"its .metadata names a file outside of it, {place.relative_path}")
    with (folder / place.relative_path).open("rb") as file:
        file.seek(int(place.offset))
        return bytes(file.read(int(place.length)))


def _record_damage(file: Any) -> str | None:
    """What is wrong with what ``torch.save`` wrote: a zip archive that is not compressed."""
    try:
        with zipfile.ZipFile(file) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                return "it was not written by torch"
            bad = archive.testzip()
            return f"its record {bad} is not what was written" if bad else None
    except zipfile.BadZipFile:
        return "it is cut short or changed, or is no checkpoint"
    except Exception as error:  # whatever a damaged archive makes of the reader
        return f"it is changed, or is no checkpoint: {type(error).__name__}"
