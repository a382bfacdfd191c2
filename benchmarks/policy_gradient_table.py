"""Tables and picture of what policy_gradients.py found, from its JSON file.

    python benchmarks/policy_gradient_table.py --page docs/online.md --figure docs/figures/policy_gradients.png

Intervals over seeds are Student's t of the differences seed by seed, wide with three. Those over prompts are bootstraps
over the held-out prompts, of differences averaged over the seeds: they say how sure these trained models differ, not
whether the next training would.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ablations import shown_interval
from policy_gradient_outcomes import ANSWERS
from policy_gradients import BEST, RATES, RESULTS, RUNS
from results import BEGIN, END

from lion_lightning.tools.evaluate.intervals import Interval, bootstrap, mean_interval

Seeds = dict[str, dict[str, Any]]
"""What a run gave, by seed."""


def rate_table(found: dict[str, Seeds]) -> list[str]:
    """The first seed's rewards, greedy accuracies and divergences at each rate.

    Args:
        found: What the runs gave, by name.
    """
    rates = sorted({rate for rates in RATES.values() for rate in rates})
    lines = [f"| objective | start | {' | '.join(f'{rate:g}' for rate in rates)} |", "|---" * (len(rates) + 2) + "|"]
    start = next(iter(found["start"].values()))
    for objective in RATES:
        cells = []
        for rate in rates:
            seeds = found.get(f"{objective}, lr {rate:g}", {})
            cells.append(_scores(next(iter(seeds.values()))) if seeds else "")
            if rate == BEST[objective]:
                cells[-1] = f"**{cells[-1]}**"
        lines.append(f"| {objective} | {_scores(start)} | {' | '.join(cells)} |")
    return lines


def _scores(one: dict[str, Any]) -> str:
    return f"{one['reward']:.3f} / {one['accuracy']:.3f} / {one['kl']:.1f}"


def run_table(found: dict[str, Seeds]) -> list[str]:
    """A line for each run of all seeds: means, gains and differences with their intervals.

    Args:
        found: What the runs gave, by name.
    """
    lines = [
        "| run | sampled reward | gain | to | difference | over prompts | greedy gain | KL | entropy | steps | clip |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    starts = found["start"]
    for run in RUNS:
        own = found.get(run.name, {})
        if len(own) < len(starts):
            continue
        others = found.get(run.against or "", {})
        cells = [
            run.name,
            f"{_mean(own, 'reward'):.3f}",
            _shown(difference(own, starts, "reward")),
            run.against or "",
            _shown(difference(own, others, "reward")) if others else "",
            _shown(difference_over_prompts(own, others)) if others else "",
            _shown(difference(own, starts, "accuracy")),
            f"{_mean(own, 'kl'):.2f}",
            f"{_mean(own, 'entropy'):.2f}",
            f"{_mean(own, 'steps'):.0f}",
            f"{_mean(own, 'clipped'):.2%}" if run.variant.stage == "grpo" else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def difference(own: Seeds, others: Seeds, key: str) -> Interval:
    """Mean over the seeds of one number's difference, with Student's interval."""
    return mean_interval([own[seed][key] - others[seed][key] for seed in own])


def difference_over_prompts(own: Seeds, others: Seeds) -> Interval:
    """Mean over held-out prompts of the difference of rewards, with a bootstrap interval."""
    by_prompt = []
    for prompt in range(len(next(iter(own.values()))["right"])):
        right = [int(own[seed]["right"][prompt]) - int(others[seed]["right"][prompt]) for seed in own]
        by_prompt.append(fmean(right) / ANSWERS)
    return bootstrap(by_prompt)


def _mean(seeds: Seeds, key: str) -> float:
    return fmean(one[key] for one in seeds.values())


def _shown(found: Interval) -> str:
    return shown_interval(found, "{:+.3f}")


def put(page: Path, name: str, lines: Sequence[str]) -> None:
    """Renew the part of a page between the marks of a table."""
    begin, end = (mark.format(name=name) for mark in (BEGIN, END))
    before, _, rest = page.read_text("utf-8").partition(begin)
    _, _, after = rest.partition(end)
    page.write_text("\n".join([f"{before}{begin}", *lines, f"{end}{after}"]), "utf-8")


def draw(found: dict[str, Seeds], path: Path) -> None:
    """Draw rewards and divergences by round.

    Args:
        found: What the runs gave, by name.
        path: Where to.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    objectives = {name: f"{name}, lr {rate:g}" for name, rate in BEST.items()}
    grpo = objectives["GRPO"]
    betas = {"beta 0": grpo, "beta 0.05": "GRPO, beta 0.05"}
    steps = {"four steps a round": grpo}
    for name in ("no clipping", "one step a round", "each round four times", "each round four times, no clipping"):
        steps[name] = f"GRPO, {name}"
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), layout="constrained")
    panels = (
        (axes[0, 0], objectives, "scores", "Mean reward of a round's answers"),
        (axes[0, 1], objectives, "kls", "KL to the model before, nats per answer"),
        (axes[1, 0], steps, "scores", "GRPO: steps on a round, mean reward"),
        (axes[1, 1], betas, "kls", "GRPO: KL with and without a penalty"),
    )
    for axis, runs, key, title in panels:
        for number, (label, name) in enumerate(runs.items()):
            _plot(axis, list(found.get(name, {}).values()), key, label, f"C{number}")
        axis.set(title=title, xlabel="round")
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _plot(axis: Any, seeds: Sequence[dict[str, Any]], key: str, label: str, color: str) -> None:
    """The mean of the seeds, rewards over three rounds, and each seed in a thin line."""
    curves = [_smoothed(one[key]) if key == "scores" else one[key] for one in seeds]
    for curve in curves:
        axis.plot(curve, color=color, alpha=0.25, linewidth=0.8)
    if curves:
        axis.plot([fmean(values) for values in zip(*curves, strict=False)], color=color, linewidth=2, label=label)


def _smoothed(curve: Sequence[float]) -> list[float]:
    return [fmean(curve[max(0, place - 1) : place + 2]) for place in range(len(curve))]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file of policy_gradients.py")
    parser.add_argument("--page", type=Path, help="page to put the tables into, between their marks")
    parser.add_argument("--figure", type=Path, help="picture to draw")
    options = parser.parse_args()
    found = json.loads(options.results.read_text("utf-8"))
    for name, lines in (("policy gradients", run_table(found)), ("rates", rate_table(found))):
        print(*lines, sep="\n")
        if options.page:
            put(options.page, name, lines)
    if options.figure:
        draw(found, options.figure)


if __name__ == "__main__":
    main()
