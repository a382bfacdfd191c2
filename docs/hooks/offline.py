"""No page loads anything from another server: the site is read without a network, and tells nobody who reads it."""

from __future__ import annotations

from html.parser import HTMLParser

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

LOADING_LINKS = {"stylesheet", "preload", "prefetch", "preconnect", "icon", "manifest", "modulepreload"}


class Assets(HTMLParser):
    """Addresses on other servers that a page would load by itself; those of its links are not among them."""

    def __init__(self, html: str):
        """Read a page."""
        super().__init__()
        self.outside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element loads."""
        given = dict(attrs)
        loads = given.get("src") or given.get("srcset")
        if tag == "link" and LOADING_LINKS & {*(given.get("rel") or "").split()}:
            loads = given.get("href")
        if loads and loads.startswith(("http:", "https:", "//")):
            self.outside.append(loads)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Stop the build at a page that loads something from outside."""
    if outside := Assets(output).outside:
        raise PluginError(f"{page.file.src_uri} loads {', '.join(outside)}; pages load nothing from other servers")
    return output
