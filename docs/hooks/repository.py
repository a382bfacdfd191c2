"""Files outside docs/ as pages of the site, so that a relative link leads to the same thing there and on GitHub.

README.md is the home page; CONTRIBUTING.md, CHANGELOG.md, examples/README.md and the notebook are pages. Any other
file of text that a page links to (a config, an example, a test) becomes a page that shows it; a folder, one that lists
its files. Only a strict build (`make docs`) runs the notebook; `make docs-serve` shows its cells alone.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from notebooks import as_markdown, executed

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", "examples/first_hour.ipynb")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
WITH_LINKS = (".md", ".ipynb")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".sh": "bash"}


def site_path(path: str) -> str:
    """Where a file or folder of the repository lies on the site: ``docs/data.md`` is ``data.md``."""
    if (ROOT / path).is_dir():
        path = f"{path}/README.md"
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if path.endswith(".md") else f"{path}.md"


def repository_path(here: str) -> str:
    """The file that a page of the site is made of; for a page made of code, the path of none."""
    if here == "index.md":
        return "README.md"
    if (ROOT / "docs" / here).is_file():
        return f"docs/{here}"
    return here if (ROOT / here).is_file() else here.removesuffix(".md")


def linked(path: str, link: str) -> str:
    """The file or folder of the repository that a link on one of its pages leads to; of a folder, its README."""
    target = os.path.normpath(os.path.join(os.path.dirname(path), link))
    readme = f"{target}/README.md"
    return readme if (ROOT / readme).is_file() else target


def files_below(folder: str) -> list[str]:
    """The text files of a folder."""
    return [
        path.relative_to(ROOT).as_posix() for path in sorted((ROOT / folder).rglob("*")) if path.suffix in LANGUAGES
    ]


def source_page(path: str, strict: bool) -> str:
    """A page that shows a file, or lists the files of a folder."""
    if (ROOT / path).is_dir():
        names = [os.path.relpath(file, path) for file in files_below(path)]
        return f"# {path}\n\n" + "".join(f"- [{name}]({name}.md)\n" for name in names)
    if path.endswith(".ipynb"):
        return as_markdown(executed(ROOT / path) if strict else nbformat.read(ROOT / path, as_version=4))
    text = (ROOT / path).read_text("utf-8")
    if path.endswith(".md"):
        return text
    fence = "`" * 4  # a file may hold fences of three
    return f"# {path}\n\n{fence}{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}{fence}\n"


def reached(pages: list[str]) -> set[str]:
    """Files and folders outside docs/ that pages lead to, and those that these lead to in turn."""
    found: set[str] = set()
    while pages:  # a list of work: each page adds the pages that it leads to
        path = pages.pop()
        targets: list[str] = []
        if (ROOT / path).is_dir():
            targets = files_below(path)
        elif path.endswith(WITH_LINKS):
            targets = [linked(path, link) for link in LINK.findall((ROOT / path).read_text("utf-8"))]
        new = {target for target in targets if not target.startswith("docs/") and (ROOT / target).exists()} - found
        found |= new
        pages += new
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of this repository that are not in docs/, and those that any page links to."""
    pages = [*PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    for path in sorted({*PAGES, *reached(pages)}):
        files.append(File.generated(config, site_path(path), content=source_page(path, config.strict)))
    return files


def with_links(markdown: str, here: str) -> str:
    """A page of the repository with its links as the site needs them.

    Args:
        markdown: The page.
        here: Its path on the site.
    """
    path = repository_path(here)

    def on_site(match: re.Match[str]) -> str:
        return os.path.relpath(site_path(linked(path, match[1])), os.path.dirname(here) or ".")

    return LINK.sub(on_site, markdown) if path.endswith(WITH_LINKS) else markdown


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    return re.sub(r"^```yaml-\w+", "```yaml", with_links(markdown, page.file.src_uri), flags=re.M)
