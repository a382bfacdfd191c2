"""Reads a config of another program, and writes ours."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lion_lightning.printing import one_line
from lion_lightning.tools.importing.dialect import Dialect, Imported
from lion_lightning.tools.importing.dialects.alignment_handbook import AlignmentHandbook
from lion_lightning.tools.importing.dialects.axolotl import Axolotl
from lion_lightning.tools.importing.dialects.llama_factory import LlamaFactory
from lion_lightning.tools.importing.dialects.trl import TRL
from lion_lightning.tools.importing.recipe import Objective
from lion_lightning.tools.importing.writing import config_text, report
from lion_lightning.tools.new_file import print_or_write
from lion_lightning.tools.train.config_file import read_mapping

DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect for dialect in (Axolotl(), LlamaFactory(), TRL(), AlignmentHandbook())
}
"""The dialects, those with fewer keys first: of two that know all keys of a config the first is taken."""


def import_config(file: str, out: str | None, dialect: str | None, objective: Objective | None) -> None:
    """Write the config of ``lion fit``, and report on stderr.

    Args:
        file: The other program's config.
        out: Where to; None to print it.
        dialect: Name of the program; None to find out.
        objective: What is trained; None to find out.

    Raises:
        ValueError: The file is no such config, or ``out`` exists.
    """
    imported = read_imported(Path(file), dialect, objective)
    text = config_text(imported, Path(file).name)
    print_or_write(text, out)
    for line in report(imported):
        print(line, file=sys.stderr)
    if out is not None:
        print(f"{out}: written; next: lion inspect -c {out}", file=sys.stderr)


def read_imported(path: Path, name: str | None = None, objective: Objective | None = None) -> Imported:
    """Read a config.

    Raises:
        ValueError: The file is no config of a program that is known.
    """
    config = read_mapping(path)
    dialect = DIALECTS[name] if name is not None else _dialect_of(config, path)
    try:
        return dialect.read(config, path, objective)
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(str(error))}") from error


def _dialect_of(config: Mapping[str, Any], path: Path) -> Dialect:
    best = max(DIALECTS.values(), key=lambda dialect: dialect.known(config))
    if not best.known(config):
        if "model" in config or "stages" in config:
            raise ValueError(f"{path}: this looks like a config of lion already; run it with `lion fit -c {path}`")
        raise ValueError(
            f"{path}: no config of axolotl, LLaMA-Factory, TRL or alignment-handbook, as it has neither base_model nor "
            "model_name_or_path; give the file with the training's settings"
        )
    return best
