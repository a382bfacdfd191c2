"""The cache folder, atomic writes of files and folders, checksums and small JSON files."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HOST = re.sub(r"[^\w-]", "-", platform.node())[:40]
_TEMPORARY = re.compile(r"\.(?:(?P<host>[\w-]*)\.)?[0-9a-f]{32}\..+")
_DAY = 24 * 3600.0
_GRACE = 1.0  # seconds between creating a temporary file and locking it


def cache_folder(kind: str, cache_dir: str | Path | None = None) -> Path:
    """Folder for one kind of cached data.

    Args:
        kind: Name of the subfolder, e.g. ``tokens``.
        cache_dir: The cache; None for ``$LION_CACHE``, else ``lion_lightning`` in the user's cache folder.
    """
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache_dir or os.environ.get("LION_CACHE") or f"{root}/lion_lightning").expanduser() / kind


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name and rename it to ``path`` at the end.

    A process that is killed leaves ``path`` unchanged and a hidden temporary file next to it, which
    :func:`remove_stale_files` removes. With several writers the last one wins.

    Yields:
        The temporary file, empty.

    Raises:
        OSError: The file cannot be written; the error names ``path``, not the temporary file.
    """
    with _temporary(path, Path.touch) as temporary:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Write a folder under a temporary name and rename it to ``path``; an earlier folder or file there is removed.

    Yields:
        The temporary folder, empty.

    Raises:
        OSError: The folder cannot be written; the error names ``path``, not the temporary folder.
    """
    replaced = _temporary_name(path)
    try:
        with temporary_folder(path) as temporary:
            yield temporary
            for file in temporary.rglob("*"):
                sync(file)
            # No portable system call swaps two folders: a kill between the renames leaves none under the name.
            if path.is_symlink() or path.exists():
                os.rename(path, replaced)
            os.rename(temporary, path)
            sync(path.parent)
    finally:
        if path.exists():  # otherwise the renamed earlier folder is the only copy
            remove(replaced)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Make a hidden folder next to ``path``, for its content, and remove it, if it is still there, at the end.

    Yields:
        The temporary folder, empty.

    Raises:
        OSError: The folder cannot be written; the error names ``path``, not the temporary folder.
    """
    with _temporary(path, partial(Path.mkdir, parents=True)) as temporary:
        yield temporary


@contextmanager
def _temporary(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Make a temporary file or folder, locked as a sign that its writer is running, and remove it at the end."""
    temporary = _temporary_name(path)
    try:
        make(temporary)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            if fcntl is not None:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield temporary
        finally:
            os.close(descriptor)
    except OSError as error:
        # A user knows the final path only; errors of other files keep their name.
        if error.filename is None or Path(str(error.filename)).is_relative_to(temporary):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        if temporary.exists():
            remove(temporary)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{_HOST}.{uuid4().hex}.{path.name}")


def remove_stale_files(*folders: Path, files_only: bool = False) -> None:
    """Remove temporary files and folders of killed processes; those of running processes stay.

    A writer holds a lock on its temporary file, which the system releases however the process ends. On network file
    systems the locks of other machines may be invisible, so their files are kept for a day after the last change.

    Args:
        folders: Where to look, without subfolders.
        files_only: Keep temporary folders.
    """
    for folder in filter(Path.is_dir, folders):
        for path in list(folder.iterdir()):
            found = _TEMPORARY.fullmatch(path.name)
            if found and not (files_only and path.is_dir()) and _is_stale(path, ours=found["host"] == _HOST):
                remove(path)


def _is_stale(path: Path, ours: bool) -> bool:
    try:
        # A writer locks its file only after it has made it.
        if time.time() - path.stat().st_mtime <= (_GRACE if ours and fcntl is not None else _DAY):
            return False
        if fcntl is not None:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(descriptor)
    except OSError:  # locked by its writer, removed or renamed meanwhile, or a file system without locks
        return False
    return True


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """CRC-32 of a file as 8 hexadecimal digits, at about 3 GB/s; it detects damage, not forgery."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def hash_json(value: Any) -> str:
    """Hash of a value that JSON can hold, equal in every process and on every machine: the key of cached data.

    Args:
        value: Plain data; anything else counts as its ``str``.
    """
    return blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=20).hexdigest()


def hash_file(path: Path) -> str:
    """Hash of a file's content, computed once per process as long as size and modification time stay the same."""
    status = path.stat()
    return _hash_content(path, status.st_size, status.st_mtime_ns)


@cache
def _hash_content(path: Path, size: int, modified: int) -> str:
    from tqdm import tqdm

    state = blake2b(digest_size=20)
    with path.open("rb") as file, tqdm(total=size, desc=f"hash {path.name}", unit="B", unit_scale=True, delay=2) as bar:
        while block := file.read(1 << 24):
            state.update(block)
            bar.update(len(block))
    return state.hexdigest()


def read_json(path: Path, content: str, fix: str) -> Any:
    """Read a small JSON file that a run wrote.

    Args:
        path: The file.
        content: What the file should hold, for the error message.
        fix: What the user can do, for the error message.

    Raises:
        ValueError: The file is not valid JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, or not {content} ({error}); {fix}") from error


def read_object(path: Path, content: str, fix: str) -> dict[str, Any]:
    """Like :func:`read_json`, for a file that holds a JSON object.

    Raises:
        ValueError: The file is not a JSON object.
    """
    found = read_json(path, content, fix)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not {content}, but a JSON {type(found).__name__}; {fix}")
    return found


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk (``fsync``); file systems without it are ignored."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def explain_write_errors(
    path: Path | str,
    content: str,
    fix: str = "name a folder that you can write in `cache_dir` or in the environment variable LION_CACHE",
) -> Iterator[None]:
    """Turn an OSError into a ValueError that names the path, the content and the fix.

    Args:
        path: The file or folder that is written to.
        content: What is written, e.g. ``tokenized data``.
        fix: What the user can do about it.

    Raises:
        ValueError: In place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: cannot write {content} ({error.strerror or error}); {fix}") from error


@contextmanager
def unwrap_os_errors() -> Iterator[None]:
    """Raise the OSError that caused a ``SafetensorError`` (a full disk, missing permissions) in its place."""
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
