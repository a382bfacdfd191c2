"""Pages made from the code: the API reference, a page for each folder of the package, and the help of every command."""

from __future__ import annotations

import ast
import io
import os
import re
import sys
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path
from textwrap import indent
from typing import Any
from unittest.mock import patch

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from lion_lightning.cli import COMMANDS, TRAINING, main

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lion_lightning"
ROOMS = (
    "types", "optim", "ops", "losses", "models", "references", "modules", "data", "rollouts", "sampling", "judges",
    "endpoint", "distributed", "processes", "planning", "strategies", "callbacks", "experimental",
)  # fmt: skip
"""Folders of the package, in the order of CONTRIBUTING.md's map; of ``tools`` the commands are shown instead."""

RANKED_LOWER = "---\nsearch:\n  boost: 0.5\n---\n\n"
"""Head of a generated page: a search finds the pages that people wrote first."""


def folders(room: Path) -> list[Path]:
    """A folder of the package with those below it, depth first."""
    below = sorted(path for path in room.iterdir() if (path / "__init__.py").is_file())
    return [room, *(folder for path in below for folder in folders(path))]


def module_name(path: Path) -> str:
    """``lion_lightning/losses/tokens.py`` as a dotted name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def summary(path: Path) -> str:
    """First paragraph of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text.split("\n\n")[0].replace("\n", " "))


def has_public_names(path: Path) -> bool:
    """Anything in a file that the reference would show."""
    nodes = ast.parse(path.read_text("utf-8")).body
    return any(isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_") for node in nodes)


def exported(folder: Path) -> dict[str, str]:
    """Names that a folder offers for import, each with the dotted name where it is defined."""
    names: dict[str, str] = {}
    for node in ast.walk(ast.parse((folder / "__init__.py").read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lion_lightning."):
            names |= {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def offered(folder: Path) -> str:
    """A line that says what to import from a folder, with links; empty where its modules are imported instead."""
    names = exported(folder)
    listed = ", ".join(f"[`{name}`][{names[name]}]" for name in sorted(names))
    return f"`from {module_name(folder)} import` {listed}\n\n" if names else ""


def folder_page(folder: Path) -> str:
    """The public names of a folder's modules; each folder below it has another page."""
    text = f"{RANKED_LOWER}# {module_name(folder)}\n\n{summary(folder / '__init__.py')}\n\n{offered(folder)}"
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py" and has_public_names(path):
            text += f"::: {module_name(path)}\n\n"
    return text


def first_page() -> str:
    """The names of the package itself, and the rooms with their purpose."""
    rows = [f"| [{module_name(room)}]({room.name}/index.md) | {summary(room / '__init__.py')} |" for room in rooms()]
    return (
        "# API reference\n\nPublic classes and functions, from their docstrings.\n\n"
        f"{offered(PACKAGE)}| folder | contents |\n|---|---|\n" + "\n".join(rows) + "\n"
    )


def rooms() -> list[Path]:
    """Top-level folders of the package in the order of the map."""
    return [PACKAGE / name for name in ROOMS]


def page_path(folder: Path) -> str:
    """Path of a folder's page on the site."""
    return "/".join(("api", *folder.relative_to(PACKAGE).parts, "index.md"))


def help_of(command: str) -> str:
    """Help of a command as a terminal of 80 columns shows it."""
    with redirect_stdout(io.StringIO()) as out, suppress(SystemExit), patch.object(sys, "argv", ["lion"]):
        main([command, "--help"])
    return out.getvalue()


def help_block(name: str) -> str:
    """Help of a command; a long one, as of those that take every key of a config, is folded."""
    text = help_of(name)
    block = f"```text\n{text}```\n"
    if text.count("\n") < 100:  # short enough to stand open
        return block
    return f'??? note "lion {name} --help"\n\n' + indent(block, "    ")


@cache
def commands_page() -> str:
    """README's table of commands, and the help of each; imports torch and Lightning."""
    readme = (ROOT / "README.md").read_text("utf-8")
    table = readme.split("## Commands\n")[1].split("\n## ")[0].replace("](docs/", "](")
    text = f"{RANKED_LOWER}# Commands\n\n{table}"
    with patch.dict(os.environ, COLUMNS="80", NO_COLOR="1"):
        for name, (_, line) in (TRAINING | COMMANDS).items():
            text += f"\n## lion {name}\n\n{line[0].upper()}{line[1:]}.\n\n{help_block(name)}"
    return text


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {page_path(PACKAGE): first_page(), "commands.md": commands_page()}
    pages |= {page_path(folder): folder_page(folder) for room in rooms() for folder in folders(room)}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the folders below *API* in the navigation."""
    (reference,) = (entry["Reference"] for entry in config.nav or [] if "Reference" in entry)
    (api,) = (entry for entry in reference if "API" in entry)
    api["API"] = [api["API"], *(navigation(room) for room in rooms())]
    return config


def navigation(folder: Path) -> dict[str, Any]:
    """A folder's entry: its page, or a section where folders lie below it."""
    below = folders(folder)[1:]
    pages = [{path.relative_to(folder).as_posix(): page_path(path)} for path in below]
    return {folder.name: [page_path(folder), *pages] if below else page_path(folder)}
