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
from results import put_lines

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
        "| run | reward | gain | to | difference | over prompts | greedy gain | KL | entropy | steps | clip | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    starts = found["start"]
    for run in RUNS:
        own = found.get(run.name, {})
        if len(own) < len(starts):
            continue
        others = found.get(run.against or "", {})
        others = others if own.keys() <= others.keys() else {}
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
        ]
        clipping = [f"{_mean(own, 'clipped'):.2%}", f"{_mean(own, 'ratio'):.3f}"]
        cells += clipping if run.variant.stage == "grpo" else ["", ""]
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


def draw(found: dict[str, Seeds], path: Path) -> None:
    """Draw the gains of held-out rewards, and rewards and divergences by round.

    Args:
        found: What the runs gave, by name.
        path: Where to.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    objectives = {name: f"{name}, lr {rate:g}" for name, rate in BEST.items()}
    betas = {"beta 0": objectives["GRPO"], "beta 0.05": "GRPO, beta 0.05", "beta 0.5": "GRPO, beta 0.5"}
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.8), layout="constrained")
    _draw_gains(axes[0, 0], found)
    axes[0, 0].set_title("Gain of the held-out reward: mean, and each seed")
    base = found[objectives["online DPO"]]
    for number, (label, name) in enumerate(objectives.items()):
        gaps = [_smoothed(_gaps(one["scores"], base[seed]["scores"])) for seed, one in found[name].items()]
        _plot(axes[0, 1], gaps, label, f"C{number}")
        _plot(axes[1, 0], [one["kls"] for one in found[name].values()], label, f"C{number}")
    axes[0, 1].set_title("Reward of a round's answers over online DPO's")
    axes[1, 0].set_title("KL to the model before, nats per answer")
    for number, (label, name) in enumerate(betas.items()):
        _plot(axes[1, 1], [one["kls"] for one in found.get(name, {}).values()], label, f"C{number}")
    axes[1, 1].set_title("GRPO: KL by the weight of its penalty")
    for axis in axes.flat[1:]:
        axis.set_xlabel("round")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_gains(axis: Any, found: dict[str, Seeds]) -> None:
    starts, names = found["start"], [run.name for run in RUNS if len(found.get(run.name, {})) == len(found["start"])]
    for place, name in enumerate(names):
        gains = [found[name][seed]["reward"] - starts[seed]["reward"] for seed in starts]
        axis.barh(-place, fmean(gains), color="#3b6fb6", alpha=0.6)
        axis.plot(gains, [-place] * len(gains), "o", color="#222", markersize=3)
    axis.set_yticks([-place for place in range(len(names))], names, fontsize=8)


def _plot(axis: Any, curves: Sequence[Sequence[float]], label: str, color: str) -> None:
    """The mean of the seeds, and each of them in a thin line."""
    for curve in curves:
        axis.plot(curve, color=color, alpha=0.25, linewidth=0.8)
    if curves:
        axis.plot([fmean(values) for values in zip(*curves, strict=False)], color=color, linewidth=2, label=label)


def _gaps(curve: Sequence[float], base: Sequence[float]) -> list[float]:
    return [own - other for own, other in zip(curve, base, strict=True)]


def _smoothed(curve: Sequence[float]) -> list[float]:
    """Means over three rounds."""
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
            put_lines(options.page, name, lines)
    if options.figure:
        draw(found, options.figure)


if __name__ == "__main__":
    main()
