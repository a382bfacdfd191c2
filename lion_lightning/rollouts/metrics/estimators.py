"""Estimators of pass@k and majority@k from n answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb

import numpy as np


def pass_at_k(num_answers: int, num_right: int, k: int) -> float:
    """Probability that any of k answers is right, an unbiased estimate from n of them (arXiv 2107.03374, eq. 1).

    Args:
        num_answers: n, at least k.
        num_right: How many of these are right.
        k: Number of answers.
    """
    return 1.0 - comb(num_answers - num_right, k) / comb(num_answers, k)


def majority_at_k(final_answers: Sequence[str], right: Sequence[bool], largest: int) -> list[float]:
    """Probability that the most common final answer among k answers is right, for every k up to ``largest``.

    The expectation over all choices of k of the n answers, computed exactly by counting these; where several final
    answers are equally common, one of them is drawn.

    Args:
        final_answers: What each of the n answers comes to.
        right: Whether it is right. Of answers that come to the same, some may be right and some not.
        largest: Largest k, at most n.

    Returns:
        For k = 1 to ``largest``.
    """
    counts, num_right = Counter(final_answers), Counter[str]()
    for final, is_right in zip(final_answers, right, strict=True):
        num_right[final] += is_right
    groups = [(count, num_right[final] / count) for final, count in counts.items()]
    expected = np.zeros(largest + 1)
    for most in range(1, min(largest, max(counts.values())) + 1):
        expected += _won_by(groups, most, largest)
    return [float(expected[k]) / comb(len(right), k) for k in range(1, largest + 1)]


def _won_by(groups: Sequence[tuple[int, float]], most: int, largest: int) -> np.ndarray:
    """``(largest + 1,)`` choices of k answers in which the most common final answer comes ``most`` times and is right.

    Args:
        groups: Number of answers with each final answer, and the share of them that is right.
        most: How often the most common one comes.
        largest: Largest k.
    """
    # Choices of so many answers (rows) in which so many final answers come `most` times (columns) and none more often;
    # and the same choices, each counted with the sum of the shares of those final answers.
    choices = np.zeros((largest + 1, largest // most + 2))
    choices[0, 0] = 1
    shares = np.zeros_like(choices)
    for count, share in groups:
        more_choices, more_shares = np.zeros_like(choices), np.zeros_like(choices)
        for times in range(min(count, most) + 1):
            ways, common = float(comb(count, times)), int(times == most)
            rows, columns = choices.shape[0] - times, choices.shape[1] - common
            before, before_shares = choices[:rows, :columns], shares[:rows, :columns]
            more_choices[times:, common:] += ways * before
            more_shares[times:, common:] += ways * (before_shares + common * share * before)
        choices, shares = more_choices, more_shares
    return np.asarray((shares[:, 1:] / np.arange(1, choices.shape[1])).sum(1))
