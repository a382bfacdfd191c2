"""Plots as SVG elements, in the colors of the page's style sheet; no plot needs its colors to be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lion_lightning.tools.evaluate.intervals import Interval
from lion_lightning.tools.report.page.html import Html, join, tag
from lion_lightning.tools.report.plots.panels import Panel, PlotLine, shortened, thinned, ticks

WIDTH, HEIGHT = 340, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 32
"""Of the axes: room for the numbers around them."""

NAMES = 96
"""Room for the names of groups."""

POINTS = 4_000
"""Points of all lines of a plot, so that a page of many seeds stays small."""


class Scale(NamedTuple):
    """Maps values to places, from ``low`` at ``first`` to ``high`` at ``last``."""

    low: float
    high: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        """Place of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.first + share * (self.last - self.first)


def line_plot(panel: Panel) -> Html:
    """A panel as a figure: title, plot, its lines in words, and what a good curve looks like."""
    xs = [x for line in panel.lines for x, _ in line.points]
    ys = [y for line in panel.lines for _, y in line.points]
    across = Scale(min(xs), max(max(xs), min(xs) + 1), LEFT, WIDTH - RIGHT)
    # a flat curve lies in the middle, and says so by its ticks
    room = (max(ys) - min(ys)) * 0.06 or abs(max(ys)) * 0.1 or 1.0
    up = Scale(min(ys) - room, max(ys) + room, HEIGHT - BOTTOM, TOP)  # SVG's y axis points down
    most = max(12, POINTS // len(panel.lines))
    drawn = [_axes(panel.over, across, up), *(_line(line, most, across, up) for line in panel.lines)]
    name = f"{panel.title} over {panel.over}: {'; '.join(map(_ends, _named(panel.lines)))}"
    plot = tag("svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=name)
    keys = tag("ul", *(_legend(line) for line in _named(panel.lines)), class_="legend")
    good = tag("p", tag("b", "Good: "), panel.good, class_="note") if panel.good else Html("")
    return tag("figure", tag("h3", panel.title), plot, tag("figcaption", keys, good))


def _axes(over: str, across: Scale, up: Scale) -> Html:
    parts = []
    for value in ticks(up.low, up.high):
        y = f"{up(value):.1f}"
        parts.append(tag("line", x1=str(LEFT), x2=str(WIDTH - RIGHT), y1=y, y2=y, class_="grid"))
        parts.append(tag("text", f"{value:g}", x=str(LEFT - 5), y=f"{up(value) + 4:.1f}", class_="end"))
    for value in ticks(across.low, across.high):
        parts.append(tag("text", f"{value:g}", x=f"{across(value):.1f}", y=str(HEIGHT - BOTTOM + 15), class_="middle"))
    middle = f"{(LEFT + WIDTH - RIGHT) / 2:g}"
    return join([*parts, tag("text", over, x=middle, y=str(HEIGHT - 3), class_="middle")])


def _line(line: PlotLine, most: int, across: Scale, up: Scale) -> Html:
    points = [(across(x), up(y)) for x, y in thinned(line.points, most)]
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    drawn = [tag("polyline", points=places, class_=f"s{line.color % 6} d{line.dash % 4}")] if len(points) > 1 else []
    if line.dots or len(points) == 1:  # a line needs two points
        shown = points if len(points) <= 40 else []
        drawn += [tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="2.4", class_=f"s{line.color % 6}") for x, y in shown]
    return join(drawn)


def _named(lines: Sequence[PlotLine]) -> list[PlotLine]:
    return [line for line in lines if line.name]


def _ends(line: PlotLine) -> str:
    first, last = line.points[0][1], line.points[-1][1]
    return f"{line.name} {first:.3g}" if len(line.points) == 1 else f"{line.name} from {first:.3g} to {last:.3g}"


def _legend(line: PlotLine) -> Html:
    sample = tag("line", x1="0", x2="22", y1="5", y2="5", class_=f"s{line.color % 6} d{line.dash % 4}")
    return tag("li", tag("svg", sample, viewBox="0 0 22 10", class_="key", aria_hidden="true"), f" {_ends(line)}")


class Bar(NamedTuple):
    """A value with its interval.

    Attributes:
        name: What it is of.
        value: Estimate and interval.
        color: Number of its color.
    """

    name: str
    value: Interval
    color: int


def interval_bar(value: Interval, color: int, low: float, high: float) -> Html:
    """A bar from ``low`` to the value, with its interval as a thin line; for a cell next to the number itself."""
    scale = Scale(low, max(high, low + 1e-9), 2, 158)
    start, end = (f"{scale(min(max(bound, low), high)):.1f}" for bound in (value.low, value.high))
    parts = [
        tag("rect", x="2", y="3", width="156", height="12", class_="track"),
        tag(
            "rect",
            x="2",
            y="3",
            width=f"{max(0.5, scale(value.estimate) - 2):.1f}",
            height="12",
            class_=f"f{color % 6}",
        ),
        tag("line", x1=start, x2=end, y1="9", y2="9", class_="whisker"),
    ]
    for x in (start, end):
        parts.append(tag("line", x1=x, x2=x, y1="5", y2="13", class_="whisker"))
    return tag("svg", *parts, viewBox="0 0 160 18", class_="bar", aria_hidden="true")


def interval_plot(title: str, groups: Sequence[tuple[str, Sequence[Bar]]], low: float, high: float) -> Html:
    """Values with intervals, a block of lines for each group, as a figure; the numbers stand next to them."""
    row, gap, top = 13, 9, 10.0
    scale = Scale(low, max(high, low + 1e-9), NAMES, WIDTH - RIGHT)
    bottom = top + sum(row * len(bars) + gap for _, bars in groups)
    parts, said, y = [_grid(scale, bottom)], [], top
    for name, bars in groups:
        middle = y + row * (len(bars) - 1) / 2 + 4
        parts.append(tag("text", shortened(name), x=str(NAMES - 6), y=f"{middle:.1f}", class_="end"))
        for bar in bars:
            parts.append(_whisker(bar, scale, y))
            y += row
        y += gap
        values = ", ".join(f"{bar.name} {bar.value.estimate:.2f}" for bar in bars)
        said.append(f"{name}: {values}")
    plot = tag(
        "svg", *parts, viewBox=f"0 0 {WIDTH} {bottom + 18:g}", role="img", aria_label=f"{title}. {'; '.join(said)}"
    )
    keys = []
    for bar in groups[0][1]:
        dot = tag("circle", cx="11", cy="5", r="4", class_=f"s{bar.color % 6}")
        keys.append(tag("li", tag("svg", dot, viewBox="0 0 22 10", class_="key", aria_hidden="true"), f" {bar.name}"))
    return tag("figure", tag("h3", title), plot, tag("figcaption", tag("ul", *keys, class_="legend")))


def _grid(scale: Scale, bottom: float) -> Html:
    """Vertical lines at round values, with their numbers below."""
    parts = []
    for value in ticks(scale.low, scale.high):
        x = f"{scale(value):.1f}"
        parts.append(tag("line", x1=x, x2=x, y1="4", y2=f"{bottom:g}", class_="grid"))
        parts.append(tag("text", f"{value:g}", x=x, y=f"{bottom + 13:g}", class_="middle"))
    return join(parts)


def _whisker(bar: Bar, scale: Scale, y: float) -> Html:
    """A value as a dot on the line of its interval, which ends at the edges of the plot."""
    start, end = (scale(min(max(bound, scale.low), scale.high)) for bound in (bar.value.low, bar.value.high))
    kind = f"s{bar.color % 6}"
    line = tag("line", x1=f"{start:.1f}", x2=f"{end:.1f}", y1=f"{y:g}", y2=f"{y:g}", class_=kind)
    return join([line, tag("circle", cx=f"{scale(bar.value.estimate):.1f}", cy=f"{y:g}", r="3.2", class_=kind)])
