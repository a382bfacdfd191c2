"""Tables and picture of what ablations.py found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ablation_claims import EQUAL, MAX_SEEDS, MIN_SEEDS, Claim, Decision
from ablation_variants import VARIANTS

from lion_lightning.tools.evaluate.intervals import mean_interval
from lion_lightning.tools.report.scores import with_interval

OUTCOMES = {"first": "yes", "second": "no, the other way round", "equal": "as good as each other", "": "not decided"}


def claim_table(decided: Sequence[tuple[Claim, Decision]]) -> list[str]:
    """A line for each claim: difference with its interval, seeds, and the decision.

    Args:
        decided: The claims with their decisions.
    """
    lines = ["| claim | difference | seeds | decision | expected |", "|---|---|---|---|---|"]
    for claim, decision in decided:
        outcome = OUTCOMES[decision.outcome]
        if not decision.outcome and decision.seeds < MAX_SEEDS:
            outcome = "open"
        elif decision.outcome and not decision.firm:
            outcome += ", not firm"
        difference = with_interval(decision.interval, "{:+.3f}") if decision.interval else ""
        cells = [f"{claim.text} (*{claim.first}* - *{claim.second}*)", difference, str(decision.seeds), outcome]
        lines.append(f"| {' | '.join([*cells, claim.paper])} |")
    return lines


def variant_table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """A line for each variant: mean grade, its parts and the optimizer steps, over the seeds that all variants have.

    Args:
        results: Measurements by variant and seed.
    """
    every = [one for seeds in results.values() for one in seeds.values()]
    parts: list[str] = next((list(one["parts"]) for one in every if one["parts"]), [])
    columns = ["variant", "mean grade", *parts, "steps"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name in VARIANTS:
        found = [results.get(name, {}).get(str(seed), {"grade": None}) for seed in range(MIN_SEEDS)]
        seeds = [one for one in found if one["grade"] is not None]
        if not seeds:
            continue
        grade = mean_interval([one["grade"] for one in seeds])
        cells = [name, with_interval(grade, "{:.3f}")]
        cells += [f"{fmean(one['parts'][part] for one in seeds):.2f}" for part in parts]
        cells.append(f"{fmean(one['steps'] for one in seeds):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def rate_table(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Grades of the search for learning rates; the best of each variant stands out.

    Args:
        found: Grade by variant and rate.
    """
    rates = sorted({rate for grades in found.values() for rate in grades}, key=float)
    lines = [f"| variant | {' | '.join(rates)} |", "|---" * (len(rates) + 1) + "|"]
    for name, grades in found.items():
        best = max(grades.values())
        cells = []
        for rate in rates:
            text = f"{grades[rate]:.3f}" if rate in grades else ""
            cells.append(f"**{text}**" if grades.get(rate) == best else text)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def draw(decided: Sequence[tuple[Claim, Decision]], path: Path) -> None:
    """Draw the differences with their intervals.

    Args:
        decided: The claims with their decisions.
        path: Where to.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [(claim, decision) for claim, decision in decided if decision.interval]
    colors = {"first": "#3b6fb6", "second": "#c8553d", "equal": "#3d9a6c", "": "#8a8f98"}
    figure, axes = plt.subplots(figsize=(8.5, 0.3 * len(rows) + 1.2), layout="constrained")
    axes.axvspan(-EQUAL, EQUAL, color="#eee")  # an interval within is "as good as each other"
    axes.axvline(0, color="#222", linewidth=0.8)
    for place, (_, decision) in enumerate(rows):
        assert decision.interval
        mean, low, high = decision.interval
        color = colors[decision.outcome]
        fill = color if decision.firm else "white"  # an empty dot: decided by the 95% interval alone, or open
        axes.errorbar(mean, -place, xerr=[[mean - low], [high - mean]], color=color, capsize=3, fmt="o", mfc=fill)
    names = [f"{claim.text} ({decision.seeds})" for claim, decision in rows]
    axes.set_yticks([-place for place in range(len(rows))], names, fontsize=8)
    axes.set_ylim(0.6 - len(rows), 0.6)
    axes.set_xlabel("difference of the mean grade, 95% over the seeds (their number in brackets)", fontsize=8)
    figure.savefig(path, dpi=140)
    plt.close(figure)
