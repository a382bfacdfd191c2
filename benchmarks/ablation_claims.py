"""The claims that ablations.py decides, and the rule by which it does.

For each seed both variants of a claim are trained, on that seed's data and from that seed's models, and the difference
of their mean grades on the seed's held-out questions is one number. From three seeds on, and after each further one:

- the 95% interval (Student's t) of the mean difference excludes zero: one of them is better;
- it lies within +-0.02: they are as good as each other;
- neither: one seed more, up to twelve; after these the claim is not decided.

To look after every seed finds a difference where there is none more often than an interval looked at once: in up to
18% of such claims, not 5% (:func:`false_decisions` simulates it). So a decision is called *firm* only where the 99%
interval, with which it is under 5%, excludes zero as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lion_lightning.tools.evaluate.intervals import Interval, mean_interval, t_quantile

MIN_SEEDS, MAX_SEEDS = 3, 12
LEVEL, FIRM_LEVEL = 0.95, 0.99
EQUAL = 0.02


class Claim(NamedTuple):
    """A question to the runs.

    Attributes:
        text: What would hold if the first variant were better.
        first: Name of a variant.
        second: Of the one that it is compared with.
        paper: What the paper, or common belief, has to say; empty for nothing.
    """

    text: str
    first: str
    second: str
    paper: str = ""


CLAIMS = (
    Claim("DPO improves on SFT", "dpo", "sft", "yes"),
    Claim("online DPO improves on DPO", "online dpo", "dpo", "yes"),
    Claim("the loss belongs on the answers alone", "sft", "sft, loss on all tokens", "yes"),
    Claim("packing changes nothing", "sft", "sft, padded", "equal"),
    Claim("contrast teaches what imitation of the chosen does not", "dpo", "chosen answers' likelihood", "yes"),
    Claim("contrast alone teaches it, too", "dpo's loss alone", "chosen answers' likelihood", "yes"),
    Claim("contrast alone is better than with likelihood", "dpo's loss alone", "dpo"),
    Claim("contrast alone is the better start of the online stage", "online dpo, from dpo's loss alone", "online dpo"),
    Claim("a tenth of beta is better", "dpo, beta 0.01", "dpo", "yes"),
    Claim("ten times beta is worse", "dpo", "dpo, beta 1", "yes"),
    Claim("all pairs are better than 30% of them", "dpo", "dpo, 30% of the pairs", "yes"),
    Claim("30% of the pairs are better than 10%", "dpo, 30% of the pairs", "dpo, 10% of the pairs", "yes"),
    Claim("two epochs are better than one", "dpo, two epochs", "dpo"),
    Claim("the reference helps", "dpo", "dpo, no reference"),
    Claim("a reference that follows (TR-DPO) is better", "dpo, reference mixed (TR-DPO)", "dpo"),
    Claim("a refreshed reference is better, over two epochs", "dpo, reference refreshed", "dpo, two epochs"),
    Claim("DPO on pairs is better than KTO on the same answers", "dpo", "kto"),
    Claim("online is better than one more epoch on the pairs", "online dpo", "offline: the pairs again", "yes"),
    Claim("online is better than offline, both from SFT", "online dpo, from sft", "dpo", "yes"),
    Claim("the DPO stage before online DPO helps", "online dpo", "online dpo, from sft", "yes"),
    Claim("five rounds are better than one, on the same prompts", "online dpo", "online dpo, one round", "yes"),
    Claim("8 answers are better than 4", "online dpo", "online dpo, 4 answers", "yes"),
    Claim("4 answers are better than 2", "online dpo, 4 answers", "online dpo, 2 answers", "yes"),
    Claim("a refreshed reference is better online", "online dpo, reference refreshed", "online dpo"),
    Claim("contrast teaches what imitation does not, online", "online dpo", "online, best answers' likelihood"),
    Claim("contrast alone is better than with likelihood, online", "online, dpo's loss alone", "online dpo"),
    Claim("all pairs are better than best against worst", "online dpo, all pairs", "online dpo"),
    Claim("a listwise loss is better than pairs", "online LiPO-lambda", "online, dpo's loss alone"),
    Claim("GRPO is better than online DPO", "grpo", "online dpo"),
    Claim("RLOO is better than online DPO", "rloo", "online dpo"),
    Claim("GRPO is better than RLOO", "grpo", "rloo"),
    Claim("a reward model judges as well as the verifiers", "online dpo, reward model judges", "online dpo"),
)


class Decision(NamedTuple):
    """Decision on a claim.

    Attributes:
        outcome: ``first``, ``second`` (is better), ``equal``, or empty while it is open.
        interval: Of the mean difference, at the seed at which it was decided, or the last.
        seeds: How many these are.
        firm: True if the interval of ``FIRM_LEVEL`` excludes zero too, and for ``equal``.
    """

    outcome: str
    interval: Interval | None
    seeds: int
    firm: bool


def decide(differences: Sequence[float]) -> Decision:
    """Apply the rule to the differences seed by seed.

    Args:
        differences: Grade of the first variant minus that of the second, in the order of the seeds.
    """
    interval, seeds = None, len(differences)
    for seeds in range(MIN_SEEDS, min(len(differences), MAX_SEEDS) + 1):
        interval = mean_interval(differences[:seeds], LEVEL)
        outcome = _outcome(interval)
        if outcome == "equal":
            return Decision(outcome, interval, seeds, True)
        if outcome:
            firm = _outcome(mean_interval(differences[:seeds], FIRM_LEVEL)) == outcome
            return Decision(outcome, interval, seeds, firm)
    return Decision("", interval, seeds, False)


def _outcome(interval: Interval) -> str:
    if interval.low > 0:
        return "first"
    if interval.high < 0:
        return "second"
    return "equal" if interval.low >= -EQUAL and interval.high <= EQUAL else ""


def false_decisions(level: float, claims: int = 20_000, seed: int = 0) -> float:
    """Share of claims without any difference for which some interval from 3 to 12 seeds excludes zero, by simulation.

    Differences are normal, and so large that no interval lies within +-0.02.

    Args:
        level: Of the intervals.
        claims: How many are simulated.
        seed: Of the simulation.
    """
    draws = np.random.default_rng(seed).normal(size=(claims, MAX_SEEDS))
    found = np.zeros(claims, dtype=bool)
    for seeds in range(MIN_SEEDS, MAX_SEEDS + 1):
        looked_at = draws[:, :seeds]
        # half of Student's interval of each claim's mean: (claims,)
        half = t_quantile((1 + level) / 2, seeds - 1) * looked_at.std(1, ddof=1) / np.sqrt(seeds)
        found |= np.abs(looked_at.mean(1)) > half  # decided at the first interval that excludes zero
    return float(found.mean())
