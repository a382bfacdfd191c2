"""Elements of HTML: every text in them is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lion_lightning.printing import harmless


class Html(str):
    """HTML as it is; any other text is escaped where it becomes part of an element."""

    __slots__ = ()


class Cell(NamedTuple):
    """A table's cell with a class of the style sheet, e.g. ``n`` for numbers."""

    content: str
    kind: str


Row = Sequence[str | Cell]


def escape(text: str) -> Html:
    """A text as HTML, without control characters of terminals and of text direction."""
    return text if isinstance(text, Html) else Html(html.escape(harmless(text)))


def tag(name: str, *content: str, **attributes: str) -> Html:
    """An element.

    Args:
        name: Its name.
        content: Elements and texts in it, one after the other.
        attributes: Its attributes, with ``_`` for ``-`` and behind names of Python's: ``class_``, ``aria_label``.
    """
    opening = name
    for key, value in attributes.items():
        opening += f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
    return Html(f"<{opening}>{join(content)}</{name}>")


def join(parts: Iterable[str], between: str = "") -> Html:
    """Elements and texts one after the other."""
    return Html(escape(between).join(escape(part) for part in parts))


def items(content: Iterable[str], kind: str = "ul") -> Html:
    """A list, of points or numbered (``ol``)."""
    return tag(kind, *(tag("li", one) for one in content))


def table(head: Sequence[str], rows: Iterable[Row], **attributes: str) -> Html:
    """A table with titles of columns; its first cells name the rows. A narrow screen shows a block a row."""
    titles = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in head)))
    body = []
    for row in rows:
        cells = []
        for place, (name, given) in enumerate(zip(head, row, strict=True)):
            content, kind = given if isinstance(given, Cell) else (given, "")
            shown = {"class_": kind} if kind else {}
            if place == 0:
                cells.append(tag("th", content, scope="row", **shown))
            elif content:
                cells.append(tag("td", content, data_label=name, **shown))
            else:
                cells.append(tag("td", content, class_="empty"))
        body.append(tag("tr", *cells))
    return tag("table", titles, tag("tbody", *body), **attributes)
