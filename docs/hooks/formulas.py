"""Formulas between dollar signs as pictures within the page, drawn by matplotlib: no script, and no font to load."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, SubElement

import matplotlib
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from mkdocs.config.defaults import MkDocsConfig

FORMULA = r"(?<![\\$\w])\$(?=\S)([^$]+?)(?<=\S)\$(?!\w)"
OTHER_NAMES = (
    (r"\\[lr]vert\b", r"\\vert"),
    (r"\\([lg])e\b", r"\\\1eq"),
    (r"\\t?frac(\d)(\d)", r"\\frac{\1}{\2}"),
)
"""TeX that matplotlib knows by another name."""

COMMANDS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
"""Parts of a path, and SVG's letters for them."""


def outline(tex: str) -> Path:
    """Outline of a formula, 1 high for a line of text."""
    for name, known in OTHER_NAMES:
        tex = re.sub(name, known, tex)
    with matplotlib.rc_context({"mathtext.fontset": "cm"}):
        return TextPath((0, 0), f"${tex}$", size=1)


def svg_path(path: Path) -> str:
    """A path as the attribute ``d``, whose y points down."""
    steps = []
    for points, code in path.iter_segments(simplify=False):
        numbers = [] if code == Path.CLOSEPOLY else (points.reshape(-1, 2) * (1, -1)).ravel()
        steps.append(COMMANDS[code] + " ".join(f"{number:.3f}" for number in numbers))
    return "".join(steps)


def picture(tex: str) -> Element:
    """A formula as an element that stands in a line of text, in its color and size."""
    path = outline(tex)
    left, bottom, right, top = path.get_extents().extents
    svg = Element("svg", {"class": "formula", "role": "img", "aria-label": tex})
    svg.set("viewBox", f"{left:.3f} {-top:.3f} {right - left:.3f} {top - bottom:.3f}")
    svg.set("style", f"width:{right - left:.2f}em;height:{top - bottom:.2f}em;vertical-align:{bottom:.2f}em")
    SubElement(svg, "path", {"d": svg_path(path), "fill": "currentColor"})
    return svg


class Formula(InlineProcessor):
    """A formula in a line."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element, int, int]:  # noqa: N802
        """Draw it; one that matplotlib cannot read stops the build."""
        return picture(" ".join(m[1].split())), m.start(0), m.end(0)


class Formulas(Extension):
    """Formulas come after code, in which a dollar is a dollar, and before what reads a backslash or an underscore."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Add them to Markdown."""
        md.inlinePatterns.register(Formula(FORMULA, md), "formula", 185)


def on_config(config: MkDocsConfig) -> None:
    """Add the extension to the site's."""
    config.markdown_extensions.append(Formulas())  # type: ignore[arg-type]
