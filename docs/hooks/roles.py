"""Sphinx's roles in docstrings (``:class:`Name```) as links of the site, and its formulas between dollar signs."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|obj|exc):`(~?)\.?([\w.]+)(\(\))?`")
FORMULA = re.compile(r":math:`([^`]+)`")
EQUATION = re.compile(r"^( *)\.\. math::((?: .+)?\n(?:\1 +\S.*\n?)*)", re.M)


class Roles(griffe.Extension):
    """Rewrites the docstrings of a package once all its modules are known."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Follow every object of the package; aliases are visited where they are defined."""
        rewrite(pkg)


def rewrite(thing: griffe.Object) -> None:
    """Rewrite the docstrings of an object and of its members."""
    if thing.docstring:
        text = EQUATION.sub(lambda match: f"{match[1]}${match[2].strip()}$\n", thing.docstring.value)
        text = FORMULA.sub(r"$\1$", text)
        thing.docstring.value = ROLE.sub(lambda match: link(thing, match[2], bool(match[1])), text)
    for member in thing.members.values():
        if not member.is_alias:
            rewrite(member)  # type: ignore[arg-type]


def link(thing: griffe.Object, name: str, shortened: bool) -> str:
    """A cross-reference where the site shows what is named, its name otherwise."""
    shown = name.rsplit(".", 1)[-1] if shortened else name
    target = find(thing, name)
    return f"[`{shown}`][{target.canonical_path}]" if target is not None and is_shown(target) else f"`{shown}`"


def find(thing: griffe.Object, name: str) -> griffe.Object | None:
    """The object that a name means within another: a path from the package, or one in the object's scope."""
    try:
        if name.startswith("lion_lightning"):
            found: Any = thing.package if name == "lion_lightning" else thing.package[name.split(".", 1)[1]]
        else:
            path = thing.resolve(name)
            found = thing.modules_collection[path]
        return found.final_target if found.is_alias else found
    except (KeyError, griffe.NameResolutionError, griffe.AliasResolutionError, griffe.CyclicAliasError):
        return None


def is_shown(target: griffe.Object) -> bool:
    """Public names with a docstring have a place in the API reference; modules have one as a heading."""
    private = any(part.startswith("_") for part in target.canonical_path.split("."))
    headless = target.is_module and (target.is_init_module or not (target.classes or target.functions))
    commands = target.canonical_path.startswith(("lion_lightning.tools", "lion_lightning.cli"))
    return bool(target.docstring) and not (private or headless or commands)
