"""Learning percentages by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lion_lightning.data.learning.percentage import learning_percentages
from tests.unit.data.learning.recorded import recorded


@pytest.mark.parametrize(
    ("perplexities", "exact", "approximate"),
    [
        ((10, 4, 3, 2), 0.75, 0.6),
        ((10, 12, 11, 9), -2.0, -0.2),
        ((10, 4, 3, 10), math.nan, 0.6),  # P_0 = P_3: none
        ((10, 4, 5, 8), 3.0, 0.6),  # it forgets, so that it is above 1
        ((10, 4, 2), 0.75, 0.6),  # two epochs
    ],
)
def test_percentages_by_hand(perplexities: tuple[float, ...], exact: float, approximate: float) -> None:
    losses = recorded([perplexities])
    for expected, found in ((exact, learning_percentages(losses)), (approximate, learning_percentages(losses, True))):
        np.testing.assert_allclose(found, [expected], rtol=1e-12)


def test_the_mean_is_over_all_targets() -> None:
    """2 ln 2 over 2 targets is a perplexity of 2, also where one of the two is certain and costs 2 ln 2 and 0."""
    losses = recorded([(4, 2, 1)])
    assert losses.nll[1].tolist() == [pytest.approx(2 * math.log(2))]
    assert learning_percentages(losses) == pytest.approx([(4 - 2) / (4 - 1)])


def test_a_document_without_targets_has_none() -> None:
    losses = recorded([(10, 4, 2), (1, 1, 1)], targets=[2, 0])
    for approximate in (False, True):
        assert np.isnan(learning_percentages(losses, approximate)).tolist() == [False, True]


def test_perplexities_beyond_float64_still_have_a_ratio() -> None:
    """Mean NLLs of 1000, 1000 - ln 2 and 1000 - ln 4: 1, 1/2 and 1/4 of a perplexity that float64 cannot hold."""
    losses = recorded([(1, 1, 1)], targets=[1])
    nll = 1000 - np.log(np.array([[1.0], [2.0], [4.0]]))
    assert learning_percentages(replace(losses, nll=nll)) == pytest.approx([2 / 3])


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 1e6])
def test_losses_that_are_no_numbers_are_refused_by_the_row(wrong: float) -> None:
    losses = recorded([(10, 4, 2), (10, 4, 2)])
    losses.nll[1, 1] = wrong
    with pytest.raises(ValueError, match=r"losses of 1 documents are no numbers, .* a\.jsonl:2: .*diverged"):
        learning_percentages(losses)


def test_too_few_epochs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"after 2 epochs at least, and the record has 1; .* approximate: true"):
        learning_percentages(recorded([(10, 4)]))
    assert learning_percentages(recorded([(10, 4)]), approximate=True) == pytest.approx([0.6])
    with pytest.raises(ValueError, match="after 1 epochs at least, and the record has 0; train longer"):
        learning_percentages(recorded([(10,)]), approximate=True)
