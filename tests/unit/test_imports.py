"""Imports point one way, and importing the package costs next to nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning.pytorch.cli import LightningCLI

import lion_lightning
from lion_lightning.cli import COMMANDS, TRAINING, help_text
from lion_lightning.tools.train.lightning_cli import LionCLI

PACKAGE = Path(lion_lightning.__file__).parent

# Rooms may import those of rows above theirs, and no others. Single modules at the top count as rooms of their own.
ROWS = (
    ("types", "errors", "printing", "cache"),
    ("processes",),
    ("readiness", "ops", "optim", "distributed", "endpoint", "one_lightning"),
    ("losses",),
    ("models",),
    ("references", "sampling", "judges"),
    ("modules", "data", "rollouts"),  # never data in modules: a module takes batches from anybody's data module
    ("planning", "strategies"),
    ("callbacks",),
    ("experimental",),
)
TOGETHER = {"data", "rollouts"}
"""The data module of online training pulls the rounds, which are made of its prompts."""
# What a person runs; these may import all of the above.
TOP = {"cli", "tools", "__main__", "__init__"}

HEAVY = ("datasets", "lightning", "peft", "torch", "transformers", "vllm")


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file it does; ``from a import b`` gives ``a`` and ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide the direction"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layers_imported(path: Path) -> set[str]:
    names = [name.split(".") for name in modules(path)]
    return {name[1] for name in names if name[0] == "lion_lightning" and len(name) > 1}


FILES = sorted({*PACKAGE.rglob("*.py"), *(PACKAGE / "callbacks").rglob("*.py")})  # rglob may not enter a link


def importable(layer: str) -> set[str]:
    """Rooms that one may import: itself and those of earlier rows."""
    (row,) = (number for number, rooms in enumerate(ROWS) if layer in rooms)
    earlier = {room for rooms in ROWS[:row] for room in rooms}
    return earlier | {layer} | (TOGETHER if layer in TOGETHER else set())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    layer = layer_of(path)
    if layer in TOP:
        return
    known = {room for rooms in ROWS for room in rooms} | TOP  # other names are public ones of the package itself
    wrong = (layers_imported(path) & known) - importable(layer)
    assert not wrong, f"{path} is of the room {layer!r} and may not import {sorted(wrong)}"


@pytest.mark.parametrize("layer", ["types", "ops", "optim", "losses"])
def test_losses_and_what_they_rest_on_never_import_lightning(layer: str) -> None:
    files = [path for path in FILES if layer_of(path) == layer]
    assert files
    roots = {name.split(".")[0] for path in files for name in modules(path)}
    assert not roots & {"lightning", "pytorch_lightning", "peft"}


def test_no_folder_has_over_ten_files() -> None:
    folders = {path.parent for path in FILES}
    assert not {folder.name for folder in folders if len([*folder.glob("*.py")]) > 10}


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(out.split())


def test_importing_the_package_loads_no_heavy_library() -> None:
    assert not loaded_by("import lion_lightning") & {*HEAVY}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["nosuchcommand"], ["report", "--nosuch"]])
def test_help_and_mistyped_commands_load_no_heavy_library(arguments: list[str]) -> None:
    run = f"from lion_lightning.cli import main\ntry: main({arguments!r})\nexcept SystemExit: pass"
    assert not loaded_by(run) & {*HEAVY}


def test_the_listed_commands_are_those_that_there_are() -> None:
    folders = {path.parent.name for path in (PACKAGE / "tools").glob("*/main.py")}
    assert {folder for folder, _ in (COMMANDS | TRAINING).values()} == folders
    assert {*LionCLI.subcommands()} == {*TRAINING} == {*LightningCLI.subcommands()} - {"predict"}
    assert all(f"    {name} " in help_text() for name in {**COMMANDS, **TRAINING})


@pytest.mark.slow
def test_importing_the_modules_loads_no_optional_library() -> None:
    loaded = loaded_by("from lion_lightning import SFTDataModule, SFTModule")
    assert "lightning" in loaded
    assert not loaded & {"datasets", "peft", "vllm"}


def test_every_public_name_is_where_the_table_and_the_type_checker_say() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {
        alias.name: (node.module or "").removeprefix("lion_lightning.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lion_lightning.")
        for alias in node.names
    }
    assert typed == lion_lightning._HOMES
    assert sorted({*typed, "__version__"}) == lion_lightning.__all__
    for name, home in typed.items():
        assert getattr(lion_lightning, name).__module__ == f"lion_lightning.{home}"


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Lions'"):
        _ = lion_lightning.Lions
    assert "SFTModule" in dir(lion_lightning)
