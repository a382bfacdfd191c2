"""Exports on disk: all of one is there or it does not count as one, and its weights are those that were written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from lion_lightning.cache import checksum, read_object, remove_stale_files, sync, temporary_folder, unwrap_os_errors

MANIFEST = "lion_export.json"
"""Lists an export's files with their sizes and checksums. It is written last, and taken away first."""

_REPLACED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "added_tokens.json",
    "special_tokens_map.json",
)
"""What exports hold, and loaders would mix with another's."""


@contextmanager
def new_export(folder: Path) -> Iterator[Path]:
    """Give a folder to write an export to, which then takes the place of what an earlier one left in ``folder``.

    It lies within ``folder``, which may be the root of a disk or hold other files; those stay. A run that is killed
    leaves a hidden temporary folder there, which the next export removes.

    Args:
        folder: Of the export, it exists.

    Raises:
        ValueError: The disk is full, or the folder cannot be written.
    """
    remove_stale_files(folder)
    try:
        with temporary_folder(folder / "export") as temporary, unwrap_os_errors():
            yield temporary
            _publish(temporary, folder)
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}; give another output folder.") from error


def is_export(folder: Path) -> bool:
    """Whether all of an export is there.

    Args:
        folder: Of the export.

    Raises:
        ValueError: The list of its files cannot be read.
    """
    return missing_of(folder) is None


def missing_of(folder: Path) -> str | None:
    """What an export lacks, in a few words; None if all files that were written are there.

    Args:
        folder: Of the export.
    """
    if not (folder / MANIFEST).is_file():
        return f"there is no {MANIFEST}, which is written last"
    for name, size in _files(folder).items():
        path = folder / name
        if not path.is_file():
            return f"{name} is gone"
        if _is_weights(path) and path.stat().st_size != size["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, and had {size['bytes']}"
    return None


def require_intact(folder: Path) -> None:
    """Refuse an export that lacks files, or whose weights have changed. Reading them takes a third of a second per GB.

    A folder that is no export of ours has no manifest, and passes.

    Args:
        folder: A model's.

    Raises:
        ValueError: It is not what was written.
    """
    if not (folder / MANIFEST).is_file():
        if folder.is_dir() and not (folder / "config.json").exists() and any(folder.glob(".*.export")):
            raise ValueError(f"{folder}: an export whose writing was cut short; export it again")
        return
    fix = f"export it again, or remove {MANIFEST} if that was meant"
    if problem := missing_of(folder):
        raise ValueError(f"{folder}: not the model that was exported: {problem}; {fix}")
    for name, known in _files(folder).items():
        path = folder / name
        status = path.stat()
        if _is_weights(path) and _checksum(path, status.st_size, status.st_mtime_ns) != known["crc32"]:
            raise ValueError(f"{path}: not the weights that were exported, their checksum differs; {fix}")


def _publish(temporary: Path, folder: Path) -> None:
    """Move the files to their places, so that no moment shows a mixture: weights last, the manifest behind them."""
    files = sorted(file for file in temporary.rglob("*") if file.is_file())
    listed = {
        str(file.relative_to(temporary)): {"bytes": file.stat().st_size, "crc32": checksum(file)} for file in files
    }
    (temporary / MANIFEST).write_text(json.dumps({"files": listed}, indent=1) + "\n", encoding="utf-8")
    for file in (*files, temporary / MANIFEST):
        sync(file)
    for old in [folder / MANIFEST, *(path for pattern in _REPLACED for path in folder.glob(pattern))]:
        if old.is_file():
            old.unlink()
    for path in sorted(temporary.iterdir(), key=lambda path: (path.name == MANIFEST, _is_weights(path), path.name)):
        place = folder / path.name
        if path.is_dir() and place.is_dir():
            shutil.rmtree(place)
        path.replace(place)
    sync(folder)


def _is_weights(path: Path) -> bool:
    return path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json")


def _files(folder: Path) -> dict[str, Any]:
    fix = "export it again"
    files: Any = read_object(folder / MANIFEST, "the list of an export's files", fix).get("files")
    known = files.values() if isinstance(files, dict) else [None]
    if not all(isinstance(one, dict) and isinstance(one.get("bytes"), int) and "crc32" in one for one in known):
        raise ValueError(f"{folder / MANIFEST}: not the list of an export's files; {fix}")
    if outside := [name for name in files if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise ValueError(f"{folder / MANIFEST}: names a file outside of the export, {outside[0]}; {fix}")
    return dict(files)


@lru_cache(maxsize=256)
def _checksum(path: Path, size: int, modified: int) -> str:
    """Read a file once a process, as long as its size and time of change stay."""
    return checksum(path)
