"""Files of an export: complete, with the weights that were written, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from lion_lightning.cache import checksum, read_object, remove_stale_files, sync, temporary_folder, unwrap_os_errors

MANIFEST = "lion_export.json"
"""List of an export's files with sizes and checksums; it is written last and removed first."""

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
"""Files of an earlier export, which loaders would mix with the new one's."""


@contextmanager
def new_export(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to write an export to; its files then replace those of an earlier export in ``folder``.

    It lies within ``folder``, which may be a mount point or hold other files; those stay. If the run is killed, the
    next export removes the temporary folder.

    Args:
        folder: Folder of the export; it must exist.

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
    """True for a complete export.

    Raises:
        ValueError: The list of its files cannot be read.
    """
    return missing_of(folder) is None


def missing_of(folder: Path) -> str | None:
    """Fault of an incomplete export, in a few words; None if it is complete."""
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
    """Refuse an export that is incomplete or whose weights have changed; a folder without a manifest passes.

    Reading the weights takes a third of a second per GB.

    Raises:
        ValueError: It is an export, and not as it was written.
    """
    if not (folder / MANIFEST).is_file():
        if folder.is_dir() and not (folder / "config.json").exists() and any(folder.glob(".*.export")):
            raise ValueError(f"{folder}: an incomplete export, its writing was cut short; export it again")
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
    """Move the files into the folder, weights and then the manifest last, so that a mixture never looks complete."""
    files = sorted(file for file in temporary.rglob("*") if file.is_file())
    listed = {
        str(file.relative_to(temporary)): {"bytes": file.stat().st_size, "crc32": checksum(file)} for file in files
    }
    (temporary / MANIFEST).write_text(json.dumps({"files": listed}, indent=1) + "\n", encoding="utf-8")
    for file in (*files, temporary / MANIFEST):
        sync(file)
    # Without its manifest the old export no longer counts, whatever happens from here on.
    for old in [folder / MANIFEST, *chain.from_iterable(map(folder.glob, _REPLACED))]:
        if old.is_file():
            old.unlink()
    for path in sorted(temporary.iterdir(), key=lambda path: (path.name == MANIFEST, _is_weights(path), path.name)):
        target = folder / path.name
        if path.is_dir() and target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
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
    """Cached, as long as the file's size and time stay."""
    return checksum(path)
