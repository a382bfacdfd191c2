"""Plots of ``lion rounds``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lion_lightning.cache import atomic_write, explain_write_errors
from lion_lightning.printing import harmless
from lion_lightning.rollouts.rounds import Round

BLUE, ORANGE, GRAY = "#1f77b4", "#ff7f0e", "#888888"


def plot(
    rounds: Sequence[Round],
    metrics: Sequence[Mapping[str, float]],
    kept: Sequence[float],
    left_out: Sequence[Mapping[str, int]],
    png: Path,
) -> None:
    """Plot scores, win rate, lengths, diversity, and what was left out, over the rounds.

    Args:
        rounds: The rounds.
        metrics: Metrics of each round, from ``round_metrics``.
        kept: Pairs (or groups) of each round that were trained on, NaN where unknown.
        left_out: Prompts, and pairs or answers, of each round that were left out, by cause.
        png: File to write.

    Raises:
        ValueError: The file cannot be written.
    """
    numbers = [finished.number for finished in rounds]

    def values(name: str) -> list[float]:
        return [known[name] for known in metrics]

    with rc_context({"text.parse_math": False}):  # a cause with dollar signs is not a formula
        figure = Figure(figsize=(13, 7), layout="constrained")
        panels = figure.subplots(2, 3).flat
        _scores(next(panels), numbers, values)
        _wins(next(panels), numbers, values, rounds)
        _spread(next(panels), numbers, rounds)
        _lengths(next(panels), numbers, values)
        _diversity(next(panels), numbers, values)
        _left_out(next(panels), numbers, kept, left_out)
        with explain_write_errors(png, "the plots", "name another file with --png"), atomic_write(png) as temporary:
            figure.savefig(temporary, dpi=110)


Values = Callable[[str], list[float]]


def _scores(axes: Any, numbers: Sequence[int], values: Values) -> None:
    axes.fill_between(
        numbers, values("score_worst"), values("score_best"), color=BLUE, alpha=0.15, label="worst to best"
    )
    axes.plot(numbers, values("score"), color=BLUE, marker="o", label="all answers")
    axes.plot(numbers, values("monitor_score"), color=ORANGE, marker="s", label="monitor prompts")
    _finish(axes, "score", "score")


def _wins(axes: Any, numbers: Sequence[int], values: Values, rounds: Sequence[Round]) -> None:
    below, above = [], []
    # Errors of errorbar are distances from the rate, below and above it.
    for rate, finished in zip(values("win_rate"), rounds, strict=True):
        low, high = wilson(rate, sum(rollout.monitor for rollout in finished.rollouts))
        below.append(rate - low)
        above.append(high - rate)
    axes.errorbar(numbers, values("win_rate"), [below, above], color=BLUE, marker="o", capsize=3, label="95% interval")
    axes.axhline(0.5, color=GRAY, linestyle="--", linewidth=1)
    axes.set_ylim(0, 1)
    _finish(axes, "win rate against the first round", "share of monitor prompts")


def wilson(rate: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share of ``count`` trials (Wilson, 1927; 95% by default); NaN without trials."""
    if not count or math.isnan(rate):
        return math.nan, math.nan
    middle = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    return max(0.0, min(rate, middle - half)), min(1.0, max(rate, middle + half))


def _spread(axes: Any, numbers: Sequence[int], rounds: Sequence[Round]) -> None:
    """Box plot of the scores of all answers, one box per round, with the mean."""
    positions, scores = [], []
    for number, finished in zip(numbers, rounds, strict=True):
        row: list[float] = []
        for rollout in finished.rollouts:
            if not rollout.monitor:
                row += rollout.scores
        if row:
            positions.append(number)
            scores.append(row)
    if scores:
        axes.boxplot(scores, positions=positions, widths=0.6, showmeans=True, showfliers=False, manage_ticks=False)
    _finish(axes, "distribution of scores (triangle: mean)", "score", legend=False)


def _lengths(axes: Any, numbers: Sequence[int], values: Values) -> None:
    axes.plot(numbers, values("length"), color=BLUE, marker="o", label="tokens (left)")
    axes.set_ylim(0, 1.1 * max([value for value in values("length") if value > 0], default=1.0))
    _finish(axes, "length of answers", "tokens", legend=False)
    share = axes.twinx()  # shares have another scale
    share.plot(numbers, values("unfinished"), color=ORANGE, marker="s", label="cut off (right)")
    share.set_ylim(0, 1.1)
    axes.legend(handles=[*axes.get_lines(), *share.get_lines()], fontsize=8)


def _diversity(axes: Any, numbers: Sequence[int], values: Values) -> None:
    axes.plot(numbers, values("distinct_2"), color=BLUE, marker="o", label="distinct-2 (1: nothing twice)")
    axes.plot(numbers, values("self_bleu"), color=ORANGE, marker="s", label="self-BLEU (1: all the same)")
    axes.set_ylim(0, 1.05)
    _finish(axes, "diversity of a prompt's answers", "")


def _left_out(axes: Any, numbers: Sequence[int], kept: Sequence[float], left_out: Sequence[Mapping[str, int]]) -> None:
    """Stacked bars: what was kept, and what was left out by cause."""
    causes = sorted(set().union(*left_out))
    bars = {"kept": [0.0 if math.isnan(count) else count for count in kept]}
    for cause in causes:
        bars[cause] = [float(counts.get(cause, 0)) for counts in left_out]
    bottom = [0.0] * len(numbers)
    for position, (name, heights) in enumerate(bars.items()):
        axes.bar(numbers, heights, bottom=bottom, label=harmless(name), color=f"C{position}", width=0.7)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    _finish(axes, "pairs or groups kept, and what was left out", "number", legend=False)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16))  # causes are long: below the bars


def _finish(axes: Any, title: str, label: str, legend: bool = True) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("round")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if legend:
        axes.legend(fontsize=8)
