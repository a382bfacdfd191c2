"""Derivatives of f against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lion_lightning.losses import AlphaDivergence, Divergence, ForwardKL, JensenShannon, ReverseKL

EVERY: list[Divergence] = [ReverseKL(), ForwardKL(), JensenShannon(), AlphaDivergence(0.5)]


def name(divergence: Divergence) -> str:
    return type(divergence).__name__


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        (ReverseKL(), (math.log(4), -math.log(4))),
        (ForwardKL(), (1 - 1 / 4, 1 - 4)),
        (JensenShannon(), (math.log(8 / 5), math.log(0.5 / 1.25))),
        (AlphaDivergence(0.5), ((1 - 1 / 2) / 0.5, (1 - 2) / 0.5)),  # 4^-0.5 = 1/2, 0.25^-0.5 = 2
    ],
    ids=[name(one) for one in EVERY],
)
def test_derivative_at_ratios_of_4_and_a_quarter(divergence: Divergence, expected: tuple[float, float]) -> None:
    ratios = torch.tensor([4.0, 0.25], dtype=torch.float64)
    assert divergence.derivative(ratios.log()).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("divergence", EVERY, ids=name)
def test_a_policy_equal_to_its_reference_earns_nothing(divergence: Divergence) -> None:
    assert divergence.derivative(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("divergence", EVERY, ids=name)
def test_slope_at_equality_is_one_so_that_beta_means_the_same_but_for_js(divergence: Divergence) -> None:
    log_ratio = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(divergence.derivative(log_ratio).sum(), log_ratio)[0].item()
    # d f'(e^x)/dx at 0: 1 for log, 1 - e^-x and (1 - e^-ax)/a; 1 - sigmoid(0) = 1/2 for Jensen-Shannon
    assert slope == pytest.approx(0.5 if isinstance(divergence, JensenShannon) else 1.0)


@pytest.mark.parametrize("divergence", EVERY, ids=name)
def test_an_answer_that_the_policy_gave_up_has_a_finite_score_and_gradient(divergence: Divergence) -> None:
    log_ratio = torch.tensor([-1000.0, 1000.0], requires_grad=True)
    scores = divergence.derivative(log_ratio)
    assert scores.isfinite().all()
    assert scores[0] < 0 < scores[1]
    assert torch.autograd.grad(scores.sum(), log_ratio)[0].isfinite().all()


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5, float("nan")])
def test_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"^AlphaDivergence: alpha is {alpha}; give a number [^\n]*$"):
        AlphaDivergence(alpha)
