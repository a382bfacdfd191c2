"""Where caches lie on disk, and what is said when they cannot be written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


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
    """Give another name to write to, which becomes ``path`` at the end: a killed run leaves no half file there.

    Args:
        path: The file to be; of two writers the last one wins.
    """
    draft = path.with_name(f".{uuid4().hex}.{path.name}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def writing(
    place: Path | str,
    what: str,
    fix: str = "name a folder that you can write in `cache_dir` or in the environment variable LION_CACHE",
) -> Iterator[None]:
    """Name the place and the fix when something in it cannot be written.

    Args:
        place: A file or folder.
        what: What is written, e.g. ``tokenised data``.
        fix: What to do about it.

    Raises:
        ValueError: In place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"{place}: cannot write {what} ({error}); {fix}") from error
