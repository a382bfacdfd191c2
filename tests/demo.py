"""The demo task in little. Its files are made once in a test run; each test gets copies that it may change."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch

from lion_lightning import PolicySpec
from lion_lightning.tools.demo import write_demo

SIZES = {"train": 11, "validation": 11, "preferences": 11, "prompts": 11, "questions": 11, "ranked": 11}
"""A row of each family."""


def copy_demo(out: str | Path, **sizes: int) -> Path:
    """Lay the task's files down in a folder.

    Args:
        out: The folder.
        sizes: Rows of each file, as :func:`lion_lightning.tools.demo.write_demo` takes them; those of ``SIZES`` else.
    """
    return _copy(_demo(**SIZES | sizes), out)


def copy_start(out: str | Path) -> Path:
    """Lay an export of random weights down in a folder, in the demo model's shape and with its tokenizer."""
    return _copy(_start(), out)


def _copy(made: Path, out: str | Path) -> Path:
    return Path(shutil.copytree(made, out, dirs_exist_ok=True, copy_function=shutil.copyfile))


@cache
def _demo(**sizes: int) -> Path:
    made = _folder()
    write_demo(made, **sizes)
    return made


@cache
def _start() -> Path:
    made = _copy(_demo(**SIZES) / "model", _folder())
    torch.manual_seed(0)
    PolicySpec(config=str(made)).build().causal_lm.save_pretrained(made)
    return made


def _folder() -> Path:
    return Path(tempfile.mkdtemp(dir=os.environ["LION_TESTS"]))
