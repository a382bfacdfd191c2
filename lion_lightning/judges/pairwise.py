"""Scores of answers from comparisons of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

Comparison = tuple[int, str, str]
"""Index of a prompt, and the answers to it that are shown first and second."""


def mean_margins(
    answers: Sequence[Sequence[str]],
    compare: Callable[[list[Comparison]], Sequence[float]],
    combine: Callable[[float, float], float],
) -> list[list[float]]:
    """Compare all different answers to each prompt in both orders, and average each answer's margins.

    Equal answers are compared once and tie exactly.

    Args:
        answers: The answers to each prompt.
        compare: By how much the first answer of each comparison is better than the second.
        combine: The margin of an answer over another, from the comparison with it first and with it second.

    Returns:
        Of each answer to each prompt, the mean margin over the other answers.
    """
    comparisons: list[Comparison] = []
    for row, given in enumerate(answers):
        for first, second in permutations(dict.fromkeys(given), 2):
            comparisons.append((row, first, second))
    preferences = dict(zip(comparisons, compare(comparisons), strict=True))

    def margin(row: int, answer: str, other: str) -> float:
        if answer == other:
            return 0.0
        return combine(preferences[row, answer, other], preferences[row, other, answer])

    scores = []
    for row, given in enumerate(answers):
        others = max(len(given) - 1, 1)
        scores.append([sum(margin(row, answer, other) for other in given) / others for answer in given])
    return scores
