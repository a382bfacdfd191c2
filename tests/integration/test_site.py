"""The hooks that make the site from docs/ and the code; ``make docs`` builds it, strictly."""

from __future__ import annotations

import json
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mkdocs", reason="the site's packages are not installed: make docs-setup")

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "first_hour.ipynb"


def hook(name: str) -> Any:
    spec = spec_from_file_location(f"hook_{name}", ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs" / "hooks")  # as MkDocs does
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
        ("examples/nonfree/NOTICE.md", "dynamic_blocking/sampler.py", "dynamic_blocking/sampler.py.md"),
        ("examples/first_hour.ipynb.md", "../docs/data.md", "../data.md"),
        ("api/index.md", "types/index.md", "types/index.md"),
    ],
)
def test_links_that_work_on_github_work_on_the_site(page: str, on_github: str, on_the_site: str) -> None:
    assert hook("repository").with_links(f"a [link]({on_github}).", page) == f"a [link]({on_the_site})."


def test_pages_that_pages_lead_to_are_followed() -> None:
    reached = hook("repository").reached(["examples/README.md"])
    assert {"examples/nonfree/NOTICE.md", "examples/plugging_in/sft/start.py", "examples/npo.py"} <= reached
    assert not [path for path in reached if path.startswith("docs/")]


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


def test_formulas_are_drawn_between_dollar_signs_outside_of_code() -> None:
    formulas = hook("formulas")
    text = r"half of $\beta_{i}$, `$x$`, $LION_CACHE, $\frac12$"
    html = formulas.Markdown(extensions=[formulas.Formulas()]).convert(text)
    assert re.findall('aria-label="([^"]+)"', html) == [r"\beta_{i}", r"\frac12"]
    assert "<code>$x$</code>, $LION_CACHE, " in html


def test_the_index_of_examples_has_a_row_for_each() -> None:
    text = (ROOT / "examples" / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| \[([\w./]+)\]\(.*?\) \| (.+) \| (.+) \|$", text, re.M)
    there = {path.name for path in (ROOT / "examples").iterdir()} - {"README.md", "__init__.py", "__pycache__"}
    assert {name.split("/")[0] for name, *_ in rows} == {name for name in there if not name.endswith(".yaml")}
    assert not [name for name in there if name.endswith(".yaml") and f"examples/{name}" not in text]


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"]]


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom() -> None:
    pytest.importorskip("nbclient", reason="the site's packages are not installed: make docs-setup")
    page = hook("notebooks").as_markdown(hook("notebooks").executed(NOTEBOOK))
    before, after = map(float, re.findall(r"val/accuracy +\│ ([\d.]+) +│ ([\d.]+)", page)[0])
    assert before < 0.1 < 0.5 < after  # SFT's share of right tokens
    accuracies = re.findall(r"val/rewards/accuracy +DPO +([\d.]+) +margin +([\d.]+)", page)
    assert [min(map(float, both)) > 0.6 for both in accuracies] == [True]
