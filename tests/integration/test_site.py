"""What makes the site out of docs/ and the code (``make docs`` builds it, strictly)."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mkdocs", reason="the site's packages are not installed: make docs-setup")

ROOT = Path(__file__).parents[2]


def hook(name: str) -> Any:
    spec = spec_from_file_location(f"hook_{name}", ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("README.md", "index.md"),
        ("docs/data.md", "data.md"),
        ("docs/figures/demo.png", "figures/demo.png"),
        ("docs/systems", "systems/README.md"),
        ("examples", "examples/README.md"),
        ("configs/dpo.yaml", "configs/dpo.yaml.md"),
        ("CONTRIBUTING.md", "CONTRIBUTING.md"),
    ],
)
def test_files_of_the_repository_have_a_place_on_the_site(path: str, page: str) -> None:
    assert hook("repository").site_path(path) == page


@pytest.mark.parametrize(
    ("page", "on_github", "on_the_site"),
    [
        ("index.md", "docs/data.md#masks", "data.md#masks"),
        ("index.md", "examples/", "examples/README.md"),
        ("index.md", "https://x.org/y.md", "https://x.org/y.md"),
        ("data.md", "../configs/sft.yaml", "configs/sft.yaml.md"),
        ("data.md", "scale.md", "scale.md"),
        ("data.md", "#here", "#here"),
        ("examples/README.md", "npo.py", "npo.py.md"),
        ("examples/README.md", "../docs/systems/spdf.md", "../systems/spdf.md"),
        ("systems/spdf.md", "../../examples/npo.py", "../examples/npo.py.md"),
    ],
)
def test_links_that_work_on_github_work_on_the_site(page: str, on_github: str, on_the_site: str) -> None:
    assert hook("repository").with_links(f"a [link]({on_github}).", page) == f"a [link]({on_the_site})."


def test_every_page_has_its_place_in_the_navigation() -> None:
    named = set(re.findall(r"(?m)^ +- (?:[^:\n]+: )?([\w/]+\.md)\b", (ROOT / "mkdocs.yml").read_text("utf-8")))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages <= named, "give the new page a line in mkdocs.yml, where a reader needs it"


def test_what_a_page_loads_from_other_servers_is_found() -> None:
    html = """<a href="https://a.org">link</a> <script src="https://b.org/x.js"></script> <img src="figures/demo.png">
        <link rel="stylesheet" href="//c.org/x.css"> <link rel="canonical" href="https://d.org">"""
    assert hook("offline").Assets(html).outside == ["https://b.org/x.js", "//c.org/x.css"]


def test_the_reference_has_every_room_of_the_package() -> None:
    rooms = {path.parent.name for path in (ROOT / "lion_lightning").glob("*/__init__.py")}
    assert {*hook("reference").ROOMS} == rooms - {"tools"}
