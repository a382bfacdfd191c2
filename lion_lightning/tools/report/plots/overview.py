"""The overview of a run as one image, e.g. for a README."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

from lion_lightning.printing import harmless
from lion_lightning.tools.evaluate.intervals import Interval
from lion_lightning.tools.report.facts import stage_title
from lion_lightning.tools.report.logs import ChainLogs
from lion_lightning.tools.report.page.style import LIGHT
from lion_lightning.tools.report.plots.panels import STEPS, Panel, loss_panels, round_panels, shortened, step_panels
from lion_lightning.tools.report.scores import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = [LIGHT[f"s{number}"] for number in range(6)]
STYLES = ("-", "--", ":", "-.")
INK = "#222222"


def overview(chains: Sequence[ChainLogs], scores: Scores | None) -> bytes | None:
    """Scores, losses, margins and rounds in one image; PNG, or None if nothing was logged."""
    draws: list[Callable[[Axes], Any]] = []
    if scores is not None:
        draws.append(partial(_by_stage, scores))
        if scores.kinds:
            draws.append(partial(_by_kind, scores))
    panels = [*loss_panels(chains), *step_panels(chains, STEPS), *round_panels(chains)]
    draws += [partial(_panel, panel) for panel in panels]
    del draws[6:]
    if not draws:
        return None
    columns = min(3, len(draws))
    with figure(-(-len(draws) // columns), columns) as (made, axes):
        for draw, one in zip(draws, axes, strict=False):
            draw(one)
        for spare in axes[len(draws) :]:
            spare.set_axis_off()
        file = BytesIO()
        made.savefig(file, format="png", dpi=130)
        return file.getvalue()


@contextmanager
def figure(rows: int, columns: int, height: float = 3.0) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """A figure of equal panels, closed afterwards."""
    import matplotlib

    matplotlib.use("Agg")  # files only: no window, no display
    from matplotlib import pyplot as plt

    with matplotlib.rc_context({"text.parse_math": False}):  # names from the data are not formulas
        made, axes = plt.subplots(
            rows, columns, figsize=(4.4 * columns, height * rows), layout="constrained", squeeze=False
        )
        for one in axes.flat:
            one.spines[["top", "right"]].set_visible(False)
            one.grid(axis="y", color="#e4e6ea", linewidth=0.8)
            one.set_axisbelow(True)
            one.tick_params(labelsize=8)
        try:
            yield made, list(axes.flat)
        finally:
            plt.close(made)


def _panel(panel: Panel, axes: Axes) -> None:
    for line in panel.lines:
        color, style = COLORS[line.color % len(COLORS)], STYLES[line.dash % len(STYLES)]
        marker = "o" if line.dots or len(line.points) == 1 else ""  # a line needs two points
        xs, ys = zip(*line.points, strict=True)
        label = shortened(harmless(line.name), 40) or None
        axes.plot(xs, ys, color=color, linestyle=style, marker=marker, markersize=3, linewidth=1.1, label=label)
    axes.set_title(harmless(panel.title), fontsize=10)
    axes.set_xlabel(panel.over, fontsize=8)
    axes.legend(fontsize=7, frameon=False)


def _by_stage(scores: Scores, axes: Axes) -> None:
    """Bars of the stages with their intervals, and each seed's own value."""
    for place, stage in enumerate(scores.stages):
        value = scores.of(stage)
        mean = value.estimate
        axes.bar(place, mean, color=COLORS[place % len(COLORS)], width=0.65)
        axes.errorbar(place, mean, _whiskers([value]), color=INK, capsize=4, linewidth=1.2)
        if scores.seeds > 1:
            axes.plot([place + 0.22] * scores.seeds, scores.values(stage), "o", color=INK, markersize=3)
        # Left of the middle, where the interval is drawn.
        axes.annotate(f"{mean:.3f}", (place - 0.28, mean), fontsize=8, va="bottom")
    axes.set_xticks(range(len(scores.stages)), [*map(stage_title, scores.stages)], fontsize=9)
    if scores.measure == "accuracy":
        axes.set_ylim(0, 1)
    axes.set_title(f"held-out {scores.measure}, {scores.seeds} seed{'s' * (scores.seeds > 1)}", fontsize=10)


def _by_kind(scores: Scores, axes: Axes) -> None:
    """Bars of the stages for each kind of prompt."""
    width = 0.8 / len(scores.stages)
    for number, stage in enumerate(scores.stages):
        found = [scores.of(stage, kind) for kind in scores.kinds]
        # The bars of a kind stand around its tick.
        places = [place + (number - (len(scores.stages) - 1) / 2) * width for place in range(len(found))]
        means = [one.estimate for one in found]
        axes.bar(places, means, width, color=COLORS[number % len(COLORS)], label=stage_title(stage))
        axes.errorbar(places, means, _whiskers(found), fmt="none", color=INK, linewidth=0.6)
    names = [shortened(harmless(kind.name)) for kind in scores.kinds]
    axes.set_xticks(range(len(names)), names, fontsize=7, rotation=40, ha="right")
    axes.margins(y=0.2)  # room above the bars for the legend
    if scores.measure == "accuracy":
        # Student's intervals may leave 0 to 1, shares cannot
        axes.set_ylim(0, 1.2)
        axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_title(f"held-out {scores.measure} by kind of prompt", fontsize=10)
    axes.legend(fontsize=7, frameon=False, ncols=len(scores.stages), loc="upper center")


def _whiskers(values: Sequence[Interval]) -> list[list[float]]:
    """Lengths of the intervals below and above their estimates; rounding must not make one negative."""
    below = [max(0.0, one.estimate - one.low) for one in values]
    return [below, [max(0.0, one.high - one.estimate) for one in values]]
