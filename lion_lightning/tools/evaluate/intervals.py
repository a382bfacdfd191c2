"""Confidence intervals over the items of one run, and over a few seeds."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np

CHUNK_SIZE = 1 << 18
"""Number of resampled items in memory at once."""


class Interval(NamedTuple):
    """An estimate with its confidence interval from ``low`` to ``high``."""

    estimate: float
    low: float
    high: float


def bootstrap(
    values: Sequence[float],
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """Percentile bootstrap interval of a mean over items, e.g. prompts (Efron, 1979).

    Args:
        values: One value per item.
        resamples: Number of resamples.
        level: Confidence level.
        seed: Seed for resampling.
        groups: What each item belongs to, e.g. the prompt of a pair: groups are drawn with all of their items, since
            those of one group are alike. None where each item stands alone.

    Raises:
        ValueError: There are no items.
    """
    items = np.asarray(values, dtype=np.float64)
    if not len(items):
        raise ValueError("no items to compute an interval of; evaluate at least one")
    numbers: dict[Hashable, int] = {}
    owners = [numbers.setdefault(group, len(numbers)) for group in (range(len(items)) if groups is None else groups)]
    sums, sizes = np.bincount(owners, items), np.bincount(owners)  # of each group
    draws = np.random.default_rng(seed)
    step = max(1, CHUNK_SIZE // len(sums))  # all resamples at once would need thousands of copies of the items
    means = []
    for start in range(0, resamples, step):
        chosen = draws.integers(len(sums), size=(min(step, resamples - start), len(sums)))
        means.append(sums[chosen].sum(axis=1) / sizes[chosen].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(items.mean()), float(low), float(high))


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of the mean of a few independent values, e.g. one per seed.

    With one value the interval is that value.

    Args:
        values: The values, assumed to be normally distributed.
        level: Confidence level.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("no values to compute an interval of; give at least one")
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean, mean, mean)
    half = t_quantile((1 + level) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def wilson(rate: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share of ``count`` trials (Wilson, 1927; 95% by default); NaN without trials."""
    if not count or math.isnan(rate):
        return math.nan, math.nan
    middle = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    return max(0.0, min(rate, middle - half)), min(1.0, max(rate, middle + half))


def t_quantile(share: float, freedom: int) -> float:
    """Quantile of Student's t for a probability from 0.5 to 1, by bisection on its density's integral."""
    low, high = 0.0, 1.0
    while _t_share(high, freedom) < share:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_share(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def _t_share(x: float, freedom: int) -> float:
    """Cumulative distribution function for ``x >= 0``, in closed form (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(x / math.sqrt(freedom))
    cosine = math.cos(angle)
    total, term = 0.0, cosine if freedom % 2 else 1.0
    for k in range(1 if freedom % 2 else 0, freedom - 1, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    if freedom % 2:
        return 0.5 + (angle + math.sin(angle) * total) / math.pi
    return 0.5 + math.sin(angle) * total / 2
