"""The module of policy gradients: what it makes of a batch, against each sequence alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lion_lightning.losses import DAPOLoss, GRPOLoss
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules.policy_gradient import PolicyGradientModule
from lion_lightning.types import LossOutput, PackedBatch, SumOver
from tests.tiny import alone_all, trees
from tests.unit.modules.answer_modules import against_another, built

SIZES = trees((5, (4, 7, 3), (10.0, 0.0, 0.0)), (3, (6, 5), (0.0, 1.0)), seed=1)
"""Groups of three and of two answers."""
EQUAL = trees((5, (4, 7, 3), (0.1, 0.1, 0.1)), (3, (6, 5), (1.0, 1.0)), seed=1)


def computed(module: Any, batch: PackedBatch) -> tuple[LossOutput, dict[str, float]]:
    output: LossOutput = module.compute_loss(batch)
    means = {}
    for name, metric in output.metrics.items():
        assert isinstance(metric, SumOver)
        means[name] = (metric.total / metric.number).item()
    return output, means


def test_loss_and_metrics_of_groups_of_several_sizes_at_the_first_step(tokenizer: TokenizerSpec) -> None:
    module = against_another(PolicyGradientModule, tokenizer, loss=DAPOLoss(beta=0.1, eps=0.0))
    output, means = computed(module, SIZES)
    own, start = (alone_all(model.causal_lm, SIZES).detach() for model in (module.policy_model, module.reference.model))
    picked = (own.gather(1, SIZES.targets[:, None]) - start.gather(1, SIZES.targets[:, None])).squeeze(1)
    # mean 10/3 and squares of 2/3 x 100 / 2: std 10 / sqrt(3), advantages 2 / sqrt(3), -1 / sqrt(3) twice; -+ sqrt(1/2)
    third, half = 3**-0.5, 0.5**0.5
    expected = -4 * 2 * third + (7 + 3) * third + 6 * half - 5 * half
    penalty = (torch.exp(-picked) - 1 + picked).sum().item()
    assert output.total.item() == pytest.approx(expected + 0.1 * penalty, rel=1e-4)
    assert output.num_items == 25
    assert means == {
        "rewards": pytest.approx(11 / 5),
        "reward_spread": pytest.approx((10 * 2**0.5 / 3 + 0.5) / 2),
        "groups_with_signal": 1.0,
        "logps": pytest.approx(own.gather(1, SIZES.targets[:, None]).sum().item() / 5, rel=1e-5),
        "lengths": 5.0,
        "ratio": 1.0,
        "clip/low": 0.0,
        "clip/high": 0.0,
        "entropy": pytest.approx(-(own.exp() * own).sum().item() / 25, rel=1e-5),
        "kl": pytest.approx(picked.sum().item() / 5, rel=1e-4),
    }


def test_equal_rewards_have_a_loss_and_gradients_of_exactly_zero(tokenizer: TokenizerSpec) -> None:
    module = built(PolicyGradientModule, tokenizer)
    assert isinstance(module.loss, GRPOLoss)
    output, means = computed(module, EQUAL)
    assert output.total == 0
    assert means["groups_with_signal"] == 0.0
    torch.autograd.backward(output.total)
    assert not any(p.grad.any() for p in module.policy_model.parameters() if p.grad is not None)


def test_a_rank_without_rows_adds_nothing(tokenizer: TokenizerSpec) -> None:
    module = built(PolicyGradientModule, tokenizer, loss=DAPOLoss())
    output: LossOutput = module.compute_loss(SIZES.without_targets())
    assert output.total == output.num_items == 0
    for metric in output.metrics.values():
        assert isinstance(metric, SumOver)
        assert metric.total == metric.number == 0


def test_a_reward_that_is_not_finite_is_refused_before_training(tokenizer: TokenizerSpec) -> None:
    module = built(PolicyGradientModule, tokenizer)
    with pytest.raises(ValueError, match=r"^GRPOLoss: a reward is inf; have the judge give finite numbers$"):
        module.require_kind(trees((3, (2, 2), (0.0, math.inf))))
