"""Plots of a report: curves, accuracies with their intervals, rounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

from lion_lightning.printing import harmless
from lion_lightning.tools.report.accuracy import Accuracy
from lion_lightning.tools.report.logs import ChainLogs, Stage, all_stages
from lion_lightning.tools.report.panels import (
    COLORS,
    POLICY_GRADIENT,
    STEPS,
    Panel,
    draw_line,
    round_panels,
    smooth,
    stage_title,
    step_panels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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


def overview(chains: Sequence[ChainLogs], accuracy: Accuracy | None) -> bytes | None:
    """Accuracies, losses, margins and rounds in one image, e.g. for a README; PNG, or None if nothing was logged."""
    panels: list[Panel] = []
    if accuracy is not None:
        panels.append(partial(_by_stage, accuracy))
        if accuracy.kinds:
            panels.append(partial(_by_kind, accuracy))
    return _png([*panels, *_curve_panels(chains), *round_panels(chains)][:6])


def curves(chains: Sequence[ChainLogs]) -> bytes | None:
    """Losses of every stage, then rewards, log-ratios and lengths of those that train on pairs; None without any."""
    return _png(_curve_panels(chains))


def policy_gradients(chains: Sequence[ChainLogs]) -> bytes | None:
    """Rewards, entropy, ratios and clipping of stages that train by policy gradients; None without any."""
    trained = [stage for stage in all_stages(chains) if "train/ratio" in stage.curves]
    return _png(step_panels([ChainLogs("", trained)], POLICY_GRADIENT))


def accuracies(accuracy: Accuracy | None) -> bytes | None:
    """Held-out accuracy of the stages by kind of prompt; None if the evaluation names no kinds."""
    if accuracy is None or not accuracy.kinds:
        return None
    with figure(1, 1, height=3.2) as (made, (axes,)):
        made.set_size_inches(11, 3.4)
        _by_kind(accuracy, axes)
        return _bytes(made)


def rounds(chains: Sequence[ChainLogs]) -> bytes | None:
    """Metrics of the rounds of on-policy sampling; None where there were none."""
    return _png(round_panels(chains))


def _png(panels: Sequence[Panel]) -> bytes | None:
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with figure(rows, columns) as (made, axes):
        for draw, one in zip(panels, axes, strict=False):
            draw(one)
        for spare in axes[len(panels) :]:
            spare.set_axis_off()
        return _bytes(made)


def _bytes(made: Figure) -> bytes:
    file = BytesIO()
    made.savefig(file, format="png", dpi=130)
    return file.getvalue()


def _curve_panels(chains: Sequence[ChainLogs]) -> list[Panel]:
    panels: list[Panel] = []
    names = dict.fromkeys(stage.name for stage in all_stages(chains))
    for place, name in enumerate(names):
        stages = all_stages(chains, name)
        if any(stage.curves.get("train/loss") or stage.curves.get("val/loss") for stage in stages):
            panels.append(partial(_losses, stages, COLORS[place % len(COLORS)]))
    return panels + step_panels(chains, STEPS)


def _by_stage(accuracy: Accuracy, axes: Axes) -> None:
    """Bars of the stages with intervals over the seeds, and each seed's own value."""
    for place, (stage, color) in enumerate(zip(accuracy.stages, COLORS, strict=False)):
        mean, low, high = accuracy.overall(stage)
        axes.bar(place, mean, color=color, width=0.65)
        axes.errorbar(place, mean, [[mean - low], [high - mean]], color="#222", capsize=4, linewidth=1.2)
        if accuracy.seeds > 1:
            axes.plot([place + 0.22] * accuracy.seeds, accuracy.values(stage), "o", color="#222", markersize=3)
        # Left of the middle, where the interval is drawn.
        axes.annotate(f"{mean:.3f}", (place - 0.28, mean), fontsize=8, va="bottom")
    axes.set_xticks(range(len(accuracy.stages)), [*map(stage_title, accuracy.stages)], fontsize=9)
    axes.set_ylim(0, 1)
    axes.set_title(f"held-out accuracy, {accuracy.seeds} seed{'s' * (accuracy.seeds > 1)}", fontsize=10)


def _by_kind(accuracy: Accuracy, axes: Axes) -> None:
    """Bars of the stages for each kind of prompt."""
    width = 0.8 / len(accuracy.stages)
    for number, (stage, color) in enumerate(zip(accuracy.stages, COLORS, strict=False)):
        found = [accuracy.of_kind(stage, kind) for kind in accuracy.kinds]
        # The bars of a kind stand around its tick.
        places = [place + (number - (len(accuracy.stages) - 1) / 2) * width for place in range(len(found))]
        means = [one.estimate for one in found]
        # A Student's t interval may leave 0 to 1, the mean of shares cannot.
        below = [one.estimate - max(one.low, 0.0) for one in found]
        above = [min(one.high, 1.0) - one.estimate for one in found]
        axes.bar(places, means, width, color=color, label=stage_title(stage))
        axes.errorbar(places, means, [below, above], fmt="none", color="#222", linewidth=0.6)
    axes.set_xticks(range(len(accuracy.kinds)), [*map(harmless, accuracy.kinds)], fontsize=7, rotation=40, ha="right")
    axes.set_ylim(0, 1.2)  # room for the legend above the bars
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_title("held-out accuracy by kind of prompt", fontsize=10)
    axes.legend(fontsize=7, frameon=False, ncols=len(accuracy.stages), loc="upper center")


def _losses(stages: Sequence[Stage], color: str, axes: Axes) -> None:
    """Losses of the same stage of all seeds."""
    for stage in stages:
        draw_line(axes, smooth(stage.curves.get("train/loss", {})), color, alpha=0.6)
        before = {0: stage.before["val/loss"]} if "val/loss" in stage.before else {}
        draw_line(axes, before | stage.curves.get("val/loss", {}), "#222", marker="o", markersize=2.5)
    axes.set_title(f"{stage_title(stages[0].name)}: loss (dots: held out)", fontsize=10)
    axes.set_xlabel("optimizer step", fontsize=8)
