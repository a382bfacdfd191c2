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

# What each layer may import besides itself. Single modules at the top count as layers of their own.
_CORE = {
    *("types", "head", "functional", "cache", "endpoint", "replies", "printing", "meeting", "agreement"),
    *("stopping", "folder_lock", "readiness", "threads"),
}
_MODELS = _CORE | {"losses", "sampling", "models"}
_PARTS = _MODELS | {"judges"}
MAY_IMPORT = {
    "types": set[str](),
    "head": set[str](),
    "functional": {"types", "head"},
    "cache": set[str](),
    "endpoint": {"printing", "replies", "transfer", "threads"},
    "transfer": set[str](),
    "replies": {"printing"},
    "printing": set[str](),
    "checking": set[str](),  # a process of its own: nothing of the package, and no torch
    "meeting": {"cache"},
    "agreement": {"printing"},
    "stopping": set[str](),
    "folder_lock": set[str](),
    "metrics_log": {"cache"},
    "readiness": {"types"},
    "threads": set[str](),
    "losses": _CORE,
    "sampling": _CORE,
    "models": _MODELS,
    "judges": _CORE | {"models"},  # some are models, which are loaded as a policy is
    "data": _PARTS,
    "modules": _PARTS,  # never data: a module takes batches from anybody's data module
    "planning": _PARTS | {"modules"},
    "callbacks": _PARTS | {"modules", "data", "planning"},
    "evaluation": _PARTS | {"modules", "data"},
    "strategies": _PARTS | {"modules", "data"},
}
# What a person runs; these may import all of the above.
TOP = {
    *("chat", "cli", "cli_errors", "commands", "config_file", "demo", "lightning_cli", "pipeline", "report"),
    *("__main__", "__init__", "null_settings"),
}

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


@pytest.mark.parametrize("layer", sorted({layer_of(path) for path in FILES} - TOP))
def test_imports_point_one_way(layer: str) -> None:
    known = MAY_IMPORT.keys() | TOP  # other names are public ones of the package itself
    may_not = known - MAY_IMPORT[layer] - {layer}
    found = {str(path): layers_imported(path) & may_not for path in FILES if layer_of(path) == layer}
    wrong = {path: names for path, names in found.items() if names}
    assert not wrong, f"files of the layer {layer!r} may not import these: {wrong}"


@pytest.mark.parametrize("layer", ["types", "head", "functional", "losses"])
def test_losses_and_what_they_rest_on_never_import_lightning(layer: str) -> None:
    files = [path for path in FILES if layer_of(path) == layer]
    assert files
    roots = {name.split(".")[0] for path in files for name in modules(path)}
    assert not roots & {"lightning", "pytorch_lightning", "transformers"}


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
    assert {*COMMANDS} == {path.stem for path in (PACKAGE / "commands").glob("[!_]*.py")}
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
