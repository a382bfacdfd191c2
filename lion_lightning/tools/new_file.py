"""Files that commands write for people."""

from __future__ import annotations

from pathlib import Path

from lion_lightning.cache import atomic_write


def print_or_write(text: str, out: str | None) -> None:
    """Print a text on stdout where no file is named, else write it as a new file; errors as of :func:`write_new`."""
    if out is None:
        print(text, end="")
    else:
        write_new(Path(out), text)


def write_new(path: Path, text: str) -> None:
    """Write a text file, and its folder if need be.

    Raises:
        ValueError: The file exists, or cannot be written.
    """
    if path.exists():
        raise ValueError(f"{path}: exists already, and is not overwritten; remove it, or give another name with -o")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror or error}); give another name with -o") from error
