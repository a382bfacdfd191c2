"""A data set as a config names it, and as a source of ours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lion_lightning.tools.importing.recipe import Objective

REMOTE = "://"


@dataclass
class Dataset:
    """A data set of a config.

    Attributes:
        objective: What it is for.
        path: File, folder or hub id.
        files: Files in place of the path.
        columns: The rows' own names of known columns.
        format: As of a source.
        template: Chat template that the kind of rows is written in.
        mask: Mask of its rows, where it is not the usual one.
    """

    objective: Objective
    path: str = ""
    files: list[str] = field(default_factory=list)
    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    fraction: float | None = None
    columns: dict[str, str] = field(default_factory=dict)
    format: str | None = None
    template: str | None = None
    mask: str | None = None

    def sources(self) -> list[dict[str, Any]]:
        """The sources, one for each file."""
        is_local = bool(self.files) and REMOTE not in self.path
        paths = self.files if is_local else [self.path]
        named = {"split": None if self.split == "train" else self.split, "subset": None if is_local else self.subset}
        shared = {**named, "revision": self.revision, "fraction": self.fraction, "format": self.format}
        columns = {name: own for name, own in self.columns.items() if name != own}
        settings = {name: value for name, value in shared.items() if value is not None}
        return [{"path": path, **settings, **({"columns": columns} if columns else {})} for path in paths]


def unknown_roles(names: Iterable[object]) -> list[str]:
    """Names of roles in messages that are not read by themselves."""
    from lion_lightning.data.formats.column_table import ROLES

    return sorted({str(name) for name in names if name is not None and str(name).lower() not in ROLES})
