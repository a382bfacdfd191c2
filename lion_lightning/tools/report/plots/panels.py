"""Panels of the plots of a report: which metrics each shows, and its lines."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lion_lightning.tools.report.facts import stage_title
from lion_lightning.tools.report.files.metrics import Curve
from lion_lightning.tools.report.logs import ChainLogs, Stage, all_stages, stage_names

Point = tuple[float, float]


class PlotLine(NamedTuple):
    """A line of a panel.

    Attributes:
        name: For the legend; empty for further lines of the same name.
        points: Its points.
        color: Number of its color.
        dash: Number of its style.
        dots: True to mark each point.
    """

    name: str
    points: list[Point]
    color: int
    dash: int = 0
    dots: bool = False


class Panel(NamedTuple):
    """A plot.

    Attributes:
        title: Its title.
        over: Title of the x axis.
        lines: Its lines.
        good: What a good curve looks like.
    """

    title: str
    over: str
    lines: list[PlotLine]
    good: str = ""


class Shown(NamedTuple):
    """Content of a panel.

    Attributes:
        title: Its title.
        keys: Pattern of log keys, without ``train/`` or ``on_policy/`` before them; for several lines with a group.
        good: What a good curve looks like.
        line: Name of a line, with {} for the text of the group.
        smooth: True to draw a running mean.
    """

    title: str
    keys: str
    good: str = ""
    line: str = "{}"
    smooth: bool = True


STEPS = (
    Shown(
        "reward margin",
        r"rewards/margin",
        "Rises above 0. In an online stage it may stay near 0: both answers are the model's own, and each round has "
        "new ones; judge that stage by its score.",
    ),
    Shown(
        "reward accuracy",
        r"rewards/accuracy",
        "Rises from 0.5; at 1 these pairs have nothing more to teach. In an online stage each round begins anew.",
    ),
    Shown("rank correlation of rewards and values", r"rewards/kendall", "Rises from 0 towards 1."),
    Shown(
        "mean log-ratio to the reference, nats",
        r"log_ratio",
        "Mean of log(policy / reference) over the data's answers. Below 0 they became less likely, as rejected "
        "answers must; far below 0 with falling scores means that the model drifts.",
    ),
    Shown("length of the chosen answer, tokens", r"lengths/chosen", "A property of the data: flat but for noise."),
)
"""Over the optimizer steps of stages."""

POLICY_GRADIENT = (
    Shown("reward", r"rewards", "Rises."),
    Shown("reward spread within a group", r"reward_spread", "Above 0: at 0 nothing is learned."),
    Shown("share of groups whose rewards differ", r"groups_with_signal", "Not near 0: the others teach nothing."),
    Shown("entropy of the policy, nats per token", r"entropy", "Falls slowly; near 0 all answers are the same."),
    Shown("share of tokens that are clipped", r"clip/(low|high)", "Small; above 0.2 the steps are too large."),
    Shown("KL to the reference, nats per answer", r"kl", "Grows slowly; a jump means too large steps."),
    Shown("ratio to the policy that sampled", r"ratio", "Near 1."),
    Shown("steps since the answers were sampled", r"staleness", "As the settings say.", smooth=False),
    Shown("length of an answer, tokens", r"lengths", "Steady; steady growth without reward is padding."),
)
"""The same of policy gradients."""

ROUNDS = (
    Shown("score of sampled answers", r"score", "Rises."),
    Shown("score on monitor prompts", r"monitor_score", "Rises; these prompts are never trained on."),
    Shown("win rate against round 0", r"win_rate", "Rises above 0.5."),
    Shown("share of right answers", r"pass_rate", "Rises."),
    Shown("parts of the score", r"reward/(.*)", "All rise; one that falls is paid for the others."),
    Shown("prompts of which none, or all, are right", r"(none|all)_right", "None right falls. Both teach nothing."),
    Shown("pass@k on monitor prompts", r"pass_at_(\d+)", "Rises.", "k = {}"),
    Shown("majority@k on monitor prompts", r"majority_at_(\d+)", "Rises.", "k = {}"),
    Shown("share of prompts whose scores differ", r"prompts_with_signal", "Not near 0: the others teach nothing."),
    Shown("length of an answer, tokens", r"length", "Steady; growth without score is padding."),
    Shown("length of right and wrong answers, tokens", r"length_(right|wrong)", "Alike."),
    Shown("share of answers cut off", r"unfinished", "Near 0; else raise max_new_tokens."),
    Shown("distinct-2", r"distinct_2", "Falls slowly; near 0 all answers to a prompt are the same."),
    Shown("log-ratio to the start, nats", r"kl", "Rises slowly; a jump means too large steps."),
)
"""Over the rounds of on-policy sampling."""


def loss_panels(chains: Sequence[ChainLogs]) -> list[Panel]:
    """Training and held-out loss of every stage that logged one."""
    panels = []
    for place, name in enumerate(stage_names(chains)):
        train, held_out = [], []
        for stage in all_stages(chains, name):
            train.append(smooth(stage.curves.get("train/loss", {})))
            before = {0: stage.before["val/loss"]} if "val/loss" in stage.before else {}
            held_out.append(before | stage.curves.get("val/loss", {}))
        lines = _lines("training", train, place) + _lines("held out", held_out, place, dash=1, dots=True)
        good = "Falls; the held-out loss too. Where it rises while the other falls, training went on too long."
        if any("train/ratio" in stage.curves for stage in all_stages(chains, name)):
            good = "Near 0 by construction of policy gradients: it says nothing. Look at the reward."
        elif any(stage.rounds for stage in all_stages(chains, name)):
            good = (
                "Flat is normal: each round has new answers of the model's own, so that the loss begins anew. The "
                "held-out pairs are not its own; their loss may rise while the answers get better."
            )
        if lines:
            panels.append(Panel(f"{stage_title(name)}: loss", "optimizer step", lines, good))
    return panels


def step_panels(chains: Sequence[ChainLogs], shown: Iterable[Shown]) -> list[Panel]:
    """Panels over the optimizer steps, of those metrics that were logged."""
    panels = []
    for one in shown:
        lines = []
        for place, name in enumerate(stage_names(chains)):
            stages = all_stages(chains, name)
            for dash, (key, line) in enumerate(_keys(one, "train/", _logged(stages)).items()):
                # stages have different numbers of steps: all are drawn over their share
                curves = [_percent(stage.curves.get(key, {}), one.smooth) for stage in stages]
                lines += _lines(f"{stage_title(name)} {line}".strip(), curves, place, dash)
        if lines:
            panels.append(Panel(one.title, "% of the stage", lines, one.good))
    return panels


def round_panels(chains: Sequence[ChainLogs]) -> list[Panel]:
    """Panels over the rounds, of those metrics that were logged."""
    panels = []
    for one in ROUNDS:
        lines = []
        for place, name in enumerate(stage_names(chains)):
            stages = all_stages(chains, name)
            logged = dict.fromkeys(key for stage in stages for made in stage.rounds for key in made.get("metrics", {}))
            for dash, (key, line) in enumerate(_keys(one, "on_policy/", logged).items()):
                curves = [_over_rounds(stage, key) for stage in stages]
                lines += _lines(f"{stage_title(name)} {line}".strip(), curves, place, dash, dots=True)
        if lines:
            panels.append(Panel(one.title, "round", lines, one.good))
    return panels


def _keys(shown: Shown, prefix: str, logged: Iterable[str]) -> dict[str, str]:
    """Keys of a panel that were logged, and the name of each line; empty for a single one."""
    lines = {}
    for key in logged:
        if found := re.fullmatch(prefix + shown.keys, key):
            lines[key] = shown.line.format(found[1]) if found.groups() else ""
    return lines


def _logged(stages: Iterable[Stage]) -> list[str]:
    return list(dict.fromkeys(key for stage in stages for key in stage.curves))


def _lines(
    name: str,
    curves: Sequence[Mapping[int, float] | Mapping[float, float]],
    color: int,
    dash: int = 0,
    dots: bool = False,
) -> list[PlotLine]:
    """A line for each seed, of which the first has the name; those without points are left out."""
    lines: list[PlotLine] = []
    for curve in curves:
        if points := [(float(x), y) for x, y in curve.items() if math.isfinite(y)]:
            lines.append(PlotLine("" if lines else name, points, color, dash, dots))
    return lines


def _over_rounds(stage: Stage, key: str) -> Curve:
    """A metric of a stage by the number of the round; without those rounds that it does not apply to."""
    values = [made.get("metrics", {}).get(key) for made in stage.rounds]
    return {number: float(value) for number, value in enumerate(values) if value is not None}


def _percent(curve: Curve, running_mean: bool) -> dict[float, float]:
    """A curve over the share of the stage."""
    last = max(curve, default=0) or 1
    return {100 * step / last: value for step, value in (smooth(curve) if running_mean else curve).items()}


def smooth(curve: Curve, weight: float = 0.8) -> Curve:
    """A running mean in which each point counts ``weight`` of the one after it, without a pull towards the start."""
    total = count = 0.0
    smoothed = {}
    for step, value in curve.items():
        total, count = weight * total + value, weight * count + 1  # sums of weighted values and of weights
        smoothed[step] = total / count
    return smoothed


def shortened(name: str, most: int = 16) -> str:
    """A name of at most so many characters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many points, evenly spaced, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    places = {round(number * (len(points) - 1) / (most - 1)) for number in range(most)}
    return [points[place] for place in sorted(places)]


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers between two values, at most so many steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    power = 10.0**-12
    while True:
        for factor in (1, 2, 5):
            step = factor * power
            if (high - low) / step <= most:
                first = -(-low // step)  # rounded up
                found = [step * (first + number) for number in range(most + 1)]
                return [round(value, 12) for value in found if value <= high + 1e-9 * step]
        power *= 10
