"""Plots of ``lion rounds``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lion_lightning.cache import atomic_write, explain_write_errors
from lion_lightning.printing import harmless
from lion_lightning.rollouts.metrics.verified import pass_rates
from lion_lightning.rollouts.rounds import Round
from lion_lightning.tools.evaluate.intervals import wilson

BLUE, ORANGE, GRAY = "#1f77b4", "#ff7f0e", "#888888"

Values = Callable[[str], list[float]]
"""From the name of a metric to its values, one per round; NaN where it is unknown."""


def plot(
    rounds: Sequence[Round],
    metrics: Sequence[Mapping[str, float]],
    kept: Sequence[float],
    left_out: Sequence[Mapping[str, int]],
    png: Path,
) -> None:
    """Plot scores, win rate, right answers, lengths, diversity, and what was left out, over the rounds.

    Args:
        rounds: The rounds.
        metrics: Metrics of each round, from ``round_metrics``.
        kept: Pairs (or answers) of each round that were trained on, NaN where unknown.
        left_out: Prompts, and pairs or answers, of each round that were left out, by cause.
        png: File to write.

    Raises:
        ValueError: The file cannot be written.
    """
    numbers = [finished.number for finished in rounds]
    names = dict.fromkeys(name for known in metrics for name in known)

    def values(name: str) -> list[float]:
        return [known.get(name, math.nan) for known in metrics]

    panels = [partial(_scores, values=values), partial(_wins, values=values, rounds=rounds)]
    panels.append(partial(_spread, rounds=rounds))
    if parts := [name for name in names if name.startswith("reward/")]:
        panels.append(partial(_parts, values=values, parts=parts))
    if "pass_rate" in names:
        panels.append(partial(_pass_rates, rounds=rounds))
    if "pass_at_2" in names:
        panels.append(partial(_pass_at_k, metrics=metrics))
    panels += [partial(_lengths, values=values), partial(_diversity, values=values)]
    panels.append(partial(_left_out, kept=kept, left_out=left_out))
    rows = -(-len(panels) // 3)
    with rc_context({"text.parse_math": False}):  # a cause with dollar signs is not a formula
        figure = Figure(figsize=(13, 3.5 * rows), layout="constrained")
        axes = list(figure.subplots(rows, 3).flat)
        for draw, one in zip(panels, axes, strict=False):
            draw(one, numbers)
        for spare in axes[len(panels) :]:
            spare.set_axis_off()
        with explain_write_errors(png, "the plots", "name another file with --png"), atomic_write(png) as temporary:
            figure.savefig(temporary, dpi=110)


def _scores(axes: Any, numbers: Sequence[int], values: Values) -> None:
    axes.fill_between(
        numbers, values("score_worst"), values("score_best"), color=BLUE, alpha=0.15, label="worst to best"
    )
    axes.plot(numbers, values("score"), color=BLUE, marker="o", label="all answers")
    axes.plot(numbers, values("monitor_score"), color=ORANGE, marker="s", label="monitor prompts")
    _finish(axes, "score", "score")


def _parts(axes: Any, numbers: Sequence[int], values: Values, parts: Sequence[str]) -> None:
    for place, name in enumerate(parts):
        label = harmless(name.removeprefix("reward/"))
        axes.plot(numbers, values(name), color=f"C{place}", marker="osD^v"[place % 5], label=label)
    _finish(axes, "parts of the score, before weights", "mean over answers")


def _pass_rates(axes: Any, numbers: Sequence[int], rounds: Sequence[Round]) -> None:
    """Stacked bars: prompts by the share of their answers that is right, from none to all."""
    labels = ("none right", "up to a quarter", "up to a half", "up to three quarters", "more", "all right")
    heights: list[list[float]] = [[] for _ in labels]
    for finished in rounds:
        rates = pass_rates(rollout for rollout in finished.rollouts if not rollout.monitor)
        places = [math.ceil(4 * rate) + (rate == 1) for rate in rates]
        for place, row in enumerate(heights):
            row.append(places.count(place) / max(len(places), 1))
    bottom = [0.0] * len(numbers)
    shades = colormaps["RdYlBu"]
    for place, (label, row) in enumerate(zip(labels, heights, strict=True)):
        axes.bar(numbers, row, bottom=bottom, label=label, color=shades(place / (len(labels) - 1)), width=0.7)
        bottom = [low + height for low, height in zip(bottom, row, strict=True)]
    axes.set_ylim(0, 1)
    _finish(axes, "prompts by pass rate", "share of prompts", legend=False)
    _legend_below(axes, columns=3)


def _pass_at_k(axes: Any, numbers: Sequence[int], metrics: Sequence[Mapping[str, float]]) -> None:
    """pass@k and majority@k over k, in the first and the last round."""
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    ends = {numbers[0]: (metrics[0], GRAY), numbers[-1]: (metrics[-1], BLUE)}
    for number, (known, color) in ends.items():
        for name, title, style in (("pass_at_", "pass@k", "o-"), ("majority_at_", "majority@k", "s--")):
            found = {int(key.removeprefix(name)): value for key, value in known.items() if key.startswith(name)}
            if name == "majority_at_" and found:
                found = {1: known["pass_at_1"], 2: known["pass_at_1"]} | found  # one or two answers have no majority
            axes.plot(list(found), list(found.values()), style, color=color, label=f"{title}, round {number}")
            if found:
                axes.set_xticks([*found], [*map(str, found)])
    axes.set_ylim(0, 1.05)
    _finish(axes, "right answers to monitor prompts", "share of prompts", over="k, number of answers")


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
    for name, style in (("right", "--"), ("wrong", ":")):
        lengths = values(f"length_{name}")
        if not all(map(math.isnan, lengths)):
            axes.plot(numbers, lengths, style, color=BLUE, label=f"of {name} answers")
    shown = [length for line in axes.get_lines() for length in line.get_ydata() if length > 0]
    axes.set_ylim(0, 1.1 * max(shown, default=1.0))
    _finish(axes, "length of answers", "tokens", legend=False)
    share = axes.twinx()  # shares have another scale
    share.plot(numbers, values("unfinished"), color=ORANGE, marker="s", label="cut off (right)")
    share.set_ylim(0, 1.1)
    axes.legend(handles=[*axes.get_lines(), *share.get_lines()], fontsize=8)


def _diversity(axes: Any, numbers: Sequence[int], values: Values) -> None:
    axes.plot(numbers, values("distinct_2"), color=BLUE, marker="o", label="distinct-2 (1: nothing twice)")
    axes.plot(numbers, values("self_bleu"), color=ORANGE, marker="s", label="self-BLEU (1: all the same)")
    axes.plot(numbers, values("prompts_with_signal"), color=GRAY, marker="D", label="prompts whose scores differ")
    axes.set_ylim(0, 1.05)
    _finish(axes, "differences between a prompt's answers", "")


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
    _finish(axes, "pairs or answers kept, and what was left out", "number", legend=False)
    _legend_below(axes)  # causes are long


def _legend_below(axes: Any, columns: int = 1) -> None:
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns)


def _finish(axes: Any, title: str, label: str, legend: bool = True, over: str = "round") -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(over)
    axes.set_ylabel(label)
    if over == "round":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if legend:
        axes.legend(fontsize=8)
