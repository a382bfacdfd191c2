"""The files of an exported model: put in their place together, and told whole from half."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_DRAFT = ".draft-"
_CONFIGS = ("config.json", "adapter_config.json")
_EXPORTED = (
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
def drafted(folder: Path) -> Iterator[Path]:
    """Give a folder to write an export to, whose files are put in their place when all are there.

    Args:
        folder: Where they belong; what an earlier export left there and this one has not is taken away.
    """
    for left in folder.glob(f"{_DRAFT}*"):  # by an export that was killed
        shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=_DRAFT, dir=folder) as draft:
        yield Path(draft)
        _move(Path(draft), folder)


def is_export(folder: Path) -> bool:
    """Whether a folder holds a whole model, as exports write it: its config comes last.

    Args:
        folder: The folder.
    """
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _move(draft: Path, folder: Path) -> None:
    """Put an export in its place, and take away what an earlier one had and this one has not.

    The earlier config goes first and the new one comes last: between them nothing takes the folder for a model.
    """
    for name in _CONFIGS:
        (folder / name).unlink(missing_ok=True)
    new = {file.name for file in draft.iterdir()}
    for pattern in _EXPORTED:
        for old in folder.glob(pattern):
            if old.name not in new and old.is_file():
                old.unlink()
    for file in sorted(draft.iterdir(), key=lambda file: file.name in _CONFIGS):
        if file.is_dir():  # a tokenizer's further templates
            shutil.rmtree(folder / file.name, ignore_errors=True)
        file.replace(folder / file.name)
