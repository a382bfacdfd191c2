"""Intervals against textbook values, values found by hand, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from lion_lightning.tools.evaluate.intervals import Interval, bootstrap, mean_interval, t_quantile


@pytest.mark.parametrize(
    ("share", "freedom", "expected"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 3, 3.182),
        (0.975, 4, 2.776),
        (0.975, 30, 2.042),
        (0.95, 5, 2.015),
        (0.995, 7, 3.499),
    ],
)
def test_quantiles_of_students_t_are_those_of_textbooks(share: float, freedom: int, expected: float) -> None:
    assert t_quantile(share, freedom) == pytest.approx(expected, abs=5e-4)


def test_one_degree_of_freedom_is_cauchys_distribution() -> None:
    assert t_quantile(0.75, 1) == pytest.approx(1.0, abs=1e-12)  # tan(pi / 4)


def test_interval_of_a_mean_by_hand() -> None:
    # mean 2, standard deviation 1 (divided by n - 1), so 4.303 / sqrt(3) on either side
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.0 - 2.4843, 2.0 + 2.4843), abs=1e-3)
    # standard deviation sqrt(1/2), over sqrt(2) values: half of 12.706
    assert mean_interval([0.0, 1.0]) == pytest.approx((0.5, 0.5 - 6.353, 0.5 + 6.353), abs=1e-3)


def test_of_one_value_nothing_is_known_but_the_value() -> None:
    assert mean_interval([0.3]) == Interval(0.3, 0.3, 0.3)


def test_no_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="no values to compute an interval of"):
        mean_interval([])
    with pytest.raises(ValueError, match="no items to compute an interval of; evaluate at least one"):
        bootstrap([])


def test_bootstrap_of_a_constant_is_the_constant() -> None:
    assert bootstrap([0.25] * 7) == Interval(0.25, 0.25, 0.25)


def test_pairs_of_one_prompt_are_drawn_together() -> None:
    # Two prompts, three pairs of the first won and one of the second lost: a resample is one of them twice (each with
    # probability 1/4), which has the mean 1 or 0, or both of them, which has 3/4.
    values, prompts = [1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]
    assert bootstrap(values, groups=prompts) == Interval(0.75, 0.0, 1.0)
    assert bootstrap(values, groups=prompts, level=0.4) == Interval(0.75, 0.75, 0.75)  # quantiles 0.3, 0.7
    # A group for each value is no group, and a single prompt says nothing about others.
    assert bootstrap(values, groups=[0, 1, 2, 3]) == bootstrap(values)
    assert bootstrap(values, groups=["a"] * 4) == Interval(0.75, 0.75, 0.75)


def test_bootstrap_of_many_items_draws_what_it_would_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.linspace(0.0, 1.0, 30).tolist()
    whole = bootstrap(values, resamples=100)
    monkeypatch.setattr(
        "lion_lightning.tools.evaluate.intervals.CHUNK_SIZE", 7 * 30
    )  # 15 blocks, the last of them short
    assert bootstrap(values, resamples=100) == pytest.approx(whole, rel=1e-12)


def test_bootstrap_of_two_items_by_hand() -> None:
    # Means of resamples: 0 in a quarter of them, 1/2 in half, 1 in a quarter.
    assert bootstrap([0.0, 1.0]) == Interval(0.5, 0.0, 1.0)
    assert bootstrap([0.0, 1.0], level=0.4) == Interval(0.5, 0.5, 0.5)  # between the quantiles 0.3 and 0.7


def test_bootstrap_of_many_items_is_the_normal_interval() -> None:
    values = np.linspace(0.0, 1.0, 400)
    half = 1.96 * values.std() / 20  # sqrt(400)
    found = bootstrap(values.tolist(), resamples=4000)
    assert found.estimate == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5 - half, abs=0.1 * half)
    assert found.high == pytest.approx(0.5 + half, abs=0.1 * half)


def test_the_seed_decides_the_draws() -> None:
    values = np.linspace(0.0, 1.0, 30).tolist()
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_bootstrap_intervals_hold_the_truth_as_often_as_they_say() -> None:
    draws = np.random.default_rng(0).random((100, 60)) < 0.7
    intervals = [bootstrap(row.tolist(), resamples=200) for row in draws]
    held = np.mean([found.low <= 0.7 <= found.high for found in intervals])
    assert 0.89 <= held <= 0.99  # 0.95, give or take three standard errors of 100 trials, but not always
