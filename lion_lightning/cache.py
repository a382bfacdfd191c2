"""Where caches lie on disk, and files that are there in full or not at all."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HOST = re.sub(r"[^\w-]", "-", platform.node())[:40]
_DRAFT = re.compile(r"\.(?:(?P<host>[\w-]*)\.)?[0-9a-f]{32}\..+")
_DAY = 24 * 3600.0
_GRACE = 1.0  # between the making of a draft and its lock


def cache_folder(kind: str, cache_dir: str | Path | None = None) -> Path:
    """Folder of one kind of cache.

    Args:
        kind: Name of the folder in the cache, e.g. ``tokens``.
        cache_dir: The cache; None for ``$LION_CACHE``, else ``lion_lightning`` in the user's cache folder.
    """
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache_dir or os.environ.get("LION_CACHE") or f"{root}/lion_lightning").expanduser() / kind


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give another name to write to, which becomes ``path`` at the end: an atomic write.

    A run that is killed leaves ``path`` as it was, and a hidden draft next to it for :func:`remove_drafts`.

    Args:
        path: The file to be; of two writers the last one wins.

    Raises:
        OSError: It cannot be written; the error names ``path``, not the draft.
    """
    draft = _draft_of(path)
    try:
        with _naming(path, draft):
            draft.touch()
            with _locked(draft):
                yield draft
                sync(draft)
                os.replace(draft, path)
                sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder, all of which is replaced.

    Args:
        path: The folder to be.

    Raises:
        OSError: It cannot be written; the error names ``path``, not the draft.
    """
    old = _draft_of(path)
    try:
        with draft_folder(path) as draft:
            yield draft
            replace_folder(draft, path, old)
    finally:
        if path.exists():  # else the old one is all that there is
            remove(old)


@contextmanager
def draft_folder(path: Path) -> Iterator[Path]:
    """Give a hidden folder next to ``path`` to write to; what is left of it at the end is removed.

    Args:
        path: What it is a draft of.

    Raises:
        OSError: It cannot be written; the error names ``path``, not the draft.
    """
    draft = _draft_of(path)
    try:
        with _naming(path, draft):
            draft.mkdir(parents=True)
            with _locked(draft):
                yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def replace_folder(draft: Path, path: Path, old: Path | None = None) -> None:
    """Let a folder that was written under another name take its place; what was there is removed after that.

    Args:
        draft: What was written, on the same disk.
        path: Its place; a file or a folder may be there.
        old: Name for what was there, until it is removed.
    """
    for file in draft.rglob("*"):
        sync(file)
    old = old or _draft_of(path)
    if path.is_symlink() or path.exists():
        os.rename(path, old)  # no system call swaps folders everywhere
    os.rename(draft, path)
    sync(path.parent)
    remove(old)


def remove_drafts(*folders: Path, files_only: bool = False) -> None:
    """Remove the drafts that killed writers left, and none that a living one is writing.

    A writer holds a lock on its draft, which the system takes away however the writer ends. Through a network folder
    the locks of other machines are not always seen, so their drafts stay for a day after they were last written.

    Args:
        folders: Where to look; not in the folders within them.
        files_only: Whether to let drafts of folders be.
    """
    for path in [path for folder in folders if folder.is_dir() for path in folder.iterdir()]:
        found = _DRAFT.fullmatch(path.name)
        if found and not (files_only and path.is_dir()) and _abandoned(path, ours=found["host"] == _HOST):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """CRC-32 of a file's bytes, at about 3 GB/s: it finds every flipped bit, and keeps nobody from forging a file."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def read_json(path: Path, what: str, fix: str) -> Any:
    """Read a small JSON file that a run wrote.

    Args:
        path: The file.
        what: What it should be, for the message.
        fix: What to do where it is something else.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, or not {what} ({error}); {fix}") from error


def read_object(path: Path, what: str, fix: str) -> dict[str, Any]:
    """The same for a file that holds a JSON object.

    Raises:
        ValueError: It holds something else.
    """
    found = read_json(path, what, fix)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not {what}, but a JSON {type(found).__name__}; {fix}")
    return found


def sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk itself, where that can be asked for."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def writing(
    place: Path | str,
    what: str,
    fix: str = "name a folder that you can write in `cache_dir` or in the environment variable LION_CACHE",
) -> Iterator[None]:
    """Name the place and the fix when something in it cannot be written.

    Args:
        place: A file or folder.
        what: What is written, e.g. ``tokenized data``.
        fix: What to do about it.

    Raises:
        ValueError: In place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"{place}: cannot write {what} ({error.strerror or error}); {fix}") from error


@contextmanager
def disk_errors() -> Iterator[None]:
    """What the disk refuses to safetensors, as the OSError that it is.

    Raises:
        OSError: In place of a ``SafetensorError`` that has one as its cause.
    """
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{_HOST}.{uuid4().hex}.{path.name}")


@contextmanager
def _naming(path: Path, draft: Path) -> Iterator[None]:
    """Let errors that name the draft, or no file, name what it was to become."""
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(str(error.filename)).is_relative_to(draft):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock on a draft, where the system has locks: it says that the writer lives."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _abandoned(path: Path, ours: bool) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
        return age > (_GRACE if ours and fcntl is not None else _DAY) and not _is_locked(path)
    except OSError:  # it was removed, or renamed, meanwhile; or the disk knows no locks
        return False


def _is_locked(path: Path) -> bool:
    if fcntl is None:
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
