"""Losses of supervised fine-tuning against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lion_lightning.losses import DFTLoss, NLLLoss, TokenLoss


def test_nll_is_the_negated_log_prob() -> None:
    logps = torch.tensor([-0.5, -3.0], requires_grad=True)
    loss = NLLLoss()(logps)
    assert loss.tolist() == [0.5, 3.0]
    assert torch.autograd.grad(loss.sum(), logps)[0].tolist() == [-1.0, -1.0]


def test_dft_weight_is_detached_so_that_its_gradient_is_minus_the_probability() -> None:
    logps = torch.tensor([math.log(0.5), math.log(0.1)], requires_grad=True)
    loss = DFTLoss()(logps)
    assert loss.tolist() == pytest.approx([0.5 * math.log(2), 0.1 * math.log(10)])
    gradient = torch.autograd.grad(loss.sum(), logps)[0]
    # d(-p log p)/d(log p) without the stop-gradient would be -p (1 + log p): -0.153 and +0.130
    assert gradient.tolist() == pytest.approx([-0.5, -0.1])


def test_a_loss_of_ones_own_is_a_few_lines() -> None:
    class Focal(TokenLoss):
        def forward(self, logps: Tensor) -> Tensor:
            return -((1 - logps.exp()) ** 2) * logps

    assert Focal()(torch.tensor([math.log(0.5)])).item() == pytest.approx(0.25 * math.log(2))


def test_a_loss_without_forward_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        TokenLoss()  # type: ignore[abstract]
