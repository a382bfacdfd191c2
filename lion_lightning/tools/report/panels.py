"""Panels of the plots of a report: which metrics each shows, and how it draws them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

from lion_lightning.printing import harmless
from lion_lightning.tools.report.logs import ChainLogs, Curve, Stage, all_stages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#8a8f98", "#3b6fb6", "#e07b1f", "#3d9a6c", "#a14fa0", "#c0433a")
"""Of the stages, in order: gray, blue, orange, ..., apart from each other for color-blind readers, too."""

STYLES = ("-", "--", ":", "-.")

Panel = Callable[["Axes"], Any]


class Shown(NamedTuple):
    """Content of a panel.

    Attributes:
        title: Its title.
        keys: Pattern of log keys, without ``train/`` or ``on_policy/`` before them; for several lines with a group.
        line: Name of a line, with {} for the text of the group.
        smooth: Whether to draw a running mean.
    """

    title: str
    keys: str
    line: str = "{}"
    smooth: bool = True


STEPS = (
    Shown("reward margin", r"rewards/margin"),
    Shown("reward accuracy", r"rewards/accuracy"),
    Shown("rank correlation of rewards and values", r"rewards/kendall"),
    Shown("log-ratio to the reference, nats", r"kl"),
    Shown("length of the chosen answer, tokens", r"lengths/chosen"),
)
"""Over the optimizer steps of stages."""

POLICY_GRADIENT = (
    Shown("reward", r"rewards"),
    Shown("reward spread within a group", r"reward_spread"),
    Shown("share of groups whose rewards differ", r"groups_with_signal"),
    Shown("entropy of the policy, nats per token", r"entropy"),
    Shown("share of tokens that are clipped", r"clip/(low|high)"),
    Shown("ratio to the policy that sampled", r"ratio"),
    Shown("steps since the answers were sampled", r"staleness", smooth=False),
    Shown("length of an answer, tokens", r"lengths"),
)
"""The same of policy gradients."""

ROUNDS = (
    Shown("score of sampled answers", r"score"),
    Shown("score on monitor prompts", r"monitor_score"),
    Shown("win rate against round 0", r"win_rate"),
    Shown("share of right answers", r"pass_rate"),
    Shown("parts of the score", r"reward/(.*)"),
    Shown("prompts of which none, or all, are right", r"(none|all)_right"),
    Shown("pass@k on monitor prompts", r"pass_at_(\d+)", "k = {}"),
    Shown("majority@k on monitor prompts", r"majority_at_(\d+)", "k = {}"),
    Shown("share of prompts whose scores differ", r"prompts_with_signal"),
    Shown("length of an answer, tokens", r"length"),
    Shown("length of right and wrong answers, tokens", r"length_(right|wrong)"),
    Shown("share of answers cut off", r"unfinished"),
    Shown("distinct-2", r"distinct_2"),
    Shown("log-ratio to the start, nats", r"kl"),
)
"""Over the rounds of on-policy sampling."""


def step_panels(chains: Sequence[ChainLogs], shown: Iterable[Shown]) -> list[Panel]:
    """Panels over the optimizer steps, of those metrics that were logged."""
    logged = dict.fromkeys(key for stage in all_stages(chains) for key in stage.curves)
    return _panels(shown, "train/", logged, partial(_over_stages, chains))


def round_panels(chains: Sequence[ChainLogs]) -> list[Panel]:
    """Panels over the rounds, of those metrics that were logged."""
    sampled = [stage for stage in all_stages(chains) if stage.rounds]
    logged: dict[str, None] = {}
    for stage in sampled:
        for made in stage.rounds:
            known = made.get("metrics", {})
            logged |= dict.fromkeys(key for key, value in known.items() if value is not None)
    return _panels(ROUNDS, "on_policy/", logged, partial(_over_rounds, sampled))


def _panels(shown: Iterable[Shown], prefix: str, logged: Iterable[str], draw: Callable[..., None]) -> list[Panel]:
    """A panel of each of those metrics that were logged."""
    panels: list[Panel] = []
    for one in shown:
        if lines := _lines(one, prefix, logged):
            panels.append(partial(draw, one, lines))
    return panels


def _lines(shown: Shown, prefix: str, logged: Iterable[str]) -> dict[str, str]:
    """Keys of a panel that were logged, and the name of each line; empty for a single one."""
    lines = {}
    for key in logged:
        if found := re.fullmatch(prefix + shown.keys, key):
            lines[key] = shown.line.format(harmless(found[1])) if found.groups() else ""
    return lines


def _over_stages(chains: Sequence[ChainLogs], shown: Shown, lines: Mapping[str, str], axes: Axes) -> None:
    """Metrics of all stages that log them, over the share of the stage."""
    names = dict.fromkeys(stage.name for stage in all_stages(chains))
    for name, color in zip(names, COLORS, strict=False):
        for (key, line), style in zip(lines.items(), cycle(STYLES), strict=False):
            label = f"{stage_title(name)} {line}".strip()
            for stage in all_stages(chains, name):
                if curve := stage.curves.get(key):
                    last = max(curve) or 1
                    drawn = smooth(curve) if shown.smooth else curve
                    percent = {100 * step / last: value for step, value in drawn.items()}
                    draw_line(axes, percent, color, linestyle=style, label=label)
                    label = ""  # the legend names a stage once, for the lines of all seeds
    axes.set_title(shown.title, fontsize=10)
    axes.set_xlabel("% of the stage", fontsize=8)
    axes.legend(fontsize=7, frameon=False)


def _over_rounds(stages: Sequence[Stage], shown: Shown, lines: Mapping[str, str], axes: Axes) -> None:
    """Metrics of all stages with rounds; several of one panel differ in color."""
    for place, (key, name) in enumerate(lines.items()):
        color, label = COLORS[(place + 2) % len(COLORS)], name
        for stage in stages:
            points = {}
            for number, made in enumerate(stage.rounds):
                if (value := made["metrics"].get(key)) is not None:
                    points[number] = value
            draw_line(axes, points, color, marker="o", markersize=3, label=label)
            label = ""
    axes.set_title(shown.title, fontsize=10)
    axes.set_xlabel("round", fontsize=8)
    axes.locator_params(axis="x", integer=True)
    if any(lines.values()):
        axes.legend(fontsize=7, frameon=False)


def draw_line(axes: Axes, curve: Mapping[float, float] | Mapping[int, float], color: str, **style: Any) -> None:
    """Draw a curve; one of a single point as a dot."""
    if len(curve) == 1:  # a line needs two points
        style = {"marker": "o", "markersize": 3, **style}
    axes.plot(list(curve), list(curve.values()), color=color, linewidth=1.1, **style)


def smooth(curve: Curve, weight: float = 0.8) -> Curve:
    """A running mean in which each point counts ``weight`` of the one after it, without a pull towards the start."""
    total = count = 0.0
    smoothed = {}
    for step, value in curve.items():
        total, count = weight * total + value, weight * count + 1
        smoothed[step] = total / count
    return smoothed


def stage_title(name: str) -> str:
    """Name of a stage as it is written in text."""
    titles = {"sft": "SFT", "dpo": "DPO", "kto": "KTO", "grpo": "GRPO", "online_dpo": "online DPO"}
    return {**titles, "reward": "reward model"}.get(name, name)
