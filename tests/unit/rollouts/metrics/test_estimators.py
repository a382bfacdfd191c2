"""pass@k and majority@k against every choice of k answers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

import pytest

from lion_lightning.rollouts.metrics.estimators import majority_at_k, pass_at_k


def test_pass_at_k_by_hand() -> None:
    """1 right of 4: k = 1 finds it in 1 of 4 choices, k = 2 in 3 of 6, k = 4 always."""
    assert [pass_at_k(4, 1, k) for k in (1, 2, 4)] == [0.25, 0.5, 1.0]
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(4, 4, 1) == 1.0
    assert pass_at_k(64, 32, 1) == 0.5


def test_majority_at_k_by_hand() -> None:
    """Finals a a b c with a right. k = 3: aab, aac win; abc twice is a tie of three. (1 + 1 + 1/3 + 1/3) / 4 = 2/3."""
    found = majority_at_k(["a", "a", "b", "c"], [True, True, False, False], 4)
    assert found == pytest.approx([1 / 2, 1 / 2, 2 / 3, 1.0])
    # The wrong one is the more common: more answers make it worse.
    assert majority_at_k(["a", "b", "b"], [True, False, False], 3) == pytest.approx([1 / 3, 1 / 3, 0.0])


def vote(finals: Sequence[str], right: Sequence[bool], chosen: Sequence[int]) -> float:
    """Mean over the most common final answers of the share of right ones among all answers that come to the same."""
    counts = Counter(finals[place] for place in chosen)
    winners = [final for final, count in counts.items() if count == max(counts.values())]
    return fmean(fmean(r for f, r in zip(finals, right, strict=True) if f == winner) for winner in winners)


@pytest.mark.parametrize("seed", range(6))
def test_both_are_means_over_all_choices(seed: int) -> None:
    draw = random.Random(seed)
    number = draw.randint(2, 9)
    finals = [draw.choice("abcde") for _ in range(number)]
    right = [final == "a" or draw.random() < 0.2 for final in finals]  # one text may be judged both ways
    majority = majority_at_k(finals, right, number)
    for k in range(1, number + 1):
        choices = list(combinations(range(number), k))
        assert pass_at_k(number, sum(right), k) == pytest.approx(fmean(any(right[i] for i in c) for c in choices))
        assert majority[k - 1] == pytest.approx(fmean(vote(finals, right, c) for c in choices))


def test_many_answers_are_counted_exactly() -> None:
    """64 answers that all differ: any of k is as common as another, so a right one wins in 1 of 64."""
    finals = [str(number) for number in range(64)]
    assert majority_at_k(finals, [number == 5 for number in range(64)], 64) == pytest.approx([1 / 64] * 64)
    # 40 of one and 24 of another: all 64 together, and any 48 (24 at least of the first), are sure of the first or tie.
    halves = majority_at_k(["a"] * 40 + ["b"] * 24, [True] * 40 + [False] * 24, 64)
    assert halves[63] == 1.0
    assert all(after >= before - 1e-12 for before, after in zip(halves[::2], halves[2::2], strict=False))
