"""RLOO and REINFORCE, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lion_lightning.losses import K3, KLInReward, REINFORCELoss, RLOOLoss
from tests.unit.losses.chosen_logps import groups_of, with_tokens

TWO = groups_of([[[-1.0, -2.0], [-3.0]]])
"""A group of two answers, of two tokens and of one."""
REWARDS = torch.tensor([[1.0, 0.0]])


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([10.0, 0.0, 0.0, 0.0], [10.0, -10 / 3, -10 / 3, -10 / 3]),
        ([10.0, 0.0, 0.0, 10.0], [20 / 3, -20 / 3, -20 / 3, 20 / 3]),
        ([1.0, 0.0], [1.0, -1.0]),
        ([1.0] + [0.0] * 63, [1.0] + [-1 / 63] * 63),
    ],
)
def test_the_baseline_of_rloo_is_the_mean_of_the_others(rewards: list[float], expected: list[float]) -> None:
    assert RLOOLoss().advantages(torch.tensor([rewards]))[0].tolist() == pytest.approx(expected)


def test_equal_rewards_have_no_signal_under_rloo() -> None:
    assert not RLOOLoss().advantages(torch.full((1, 7), 0.1)).any()


@pytest.mark.parametrize(
    ("log_ratios", "value", "gradient"),
    [
        # 2 x 0.75 = 1.5, clipped at 1.2 for the better answer; 1.5 for the worse one
        ((2.0, 0.75, 1.5), (-1.2 + 1.5) / 2, (0.0, 0.0, 0.75)),
        # 0.5 x 1.5 = 0.75; the worse one clipped at 0.8
        ((0.5, 1.5, 0.75), (-0.75 + 0.8) / 2, (-0.375, -0.375, 0.0)),
    ],
)
def test_the_ratio_of_rloo_is_the_whole_answers(
    log_ratios: tuple[float, ...], value: float, gradient: tuple[float, ...]
) -> None:
    values = (TWO.tokens.values + torch.tensor(log_ratios, dtype=torch.float64).log()).requires_grad_()
    [loss] = RLOOLoss(beta=0.0)(with_tokens(TWO, values), TWO, REWARDS, TWO)
    assert loss.item() == pytest.approx(value)
    assert torch.autograd.grad(loss, values)[0].tolist() == pytest.approx(gradient)


def test_the_penalty_of_rloo_is_in_the_reward_by_the_policy_that_sampled() -> None:
    reference = groups_of([[[-2.0, -3.0], [-2.0]]])
    loss = RLOOLoss(beta=0.1)
    # log-ratios of the sampling policy 2 and -1: rewards 1 - 0.2 and 0 + 0.1
    assert loss.penalized(REWARDS, reference, TWO)[0].tolist() == pytest.approx([0.8, 0.1])
    values = (TWO.tokens.values - 0.1).requires_grad_()
    [value] = loss(with_tokens(TWO, values), reference, REWARDS, TWO)
    # ratios e^-0.2 (above 0.8) and e^-0.1, advantages 0.7 and -0.7
    assert value.item() == pytest.approx(0.35 * (math.exp(-0.1) - math.exp(-0.2)))
    assert torch.autograd.grad(value, values)[0].tolist() == pytest.approx(
        [-0.35 * math.exp(-0.2)] * 2 + [0.35 * math.exp(-0.1)]
    )


def test_without_a_baseline_a_reward_is_the_advantage_of_each_token() -> None:
    values = TWO.tokens.values.clone().requires_grad_()
    [loss] = REINFORCELoss(baseline=False)(with_tokens(TWO, values), TWO, torch.tensor([[3.0, -1.0]]))
    assert loss.item() == pytest.approx((-3 * 2 + 1) / 2)
    assert torch.autograd.grad(loss, values)[0].tolist() == [-1.5, -1.5, 0.5]


def test_the_baseline_is_the_mean_reward_of_the_steps_before_on_all_ranks() -> None:
    ranks = [REINFORCELoss(beta=0.1), REINFORCELoss(beta=0.1)]
    reference = groups_of([[[-2.0, -3.0], [-2.0]]])
    rewards = [REWARDS, torch.tensor([[5.0, 3.0]])]
    for rank, seen in zip(ranks, rewards, strict=True):
        assert rank(TWO, reference, seen).item() == pytest.approx(  # the first step: nothing to compare with
            -(2 * rank.penalized(seen, reference, TWO)[0, 0] + rank.penalized(seen, reference, TWO)[0, 1]).item() / 2
        )
        rank.metrics(TWO, reference, seen)  # counts nothing
    shares = [rank.mean_reward._pending for rank in ranks if rank.mean_reward]
    for rank in ranks:
        rank.after_step(lambda _: shares[0] + shares[1])
        # (0.8 + 0.1 + 4.8 + 3.1) / 4 = 2.2
        assert rank.advantages(torch.tensor([[2.2, 4.2]]))[0].tolist() == pytest.approx([0.0, 2.0])
    assert set(ranks[0].state_dict()) == {"mean_reward.totals"}
    ranks[0].eval()(TWO, reference, torch.full((1, 2), 100.0))
    ranks[0].after_step(lambda share: share)
    assert ranks[0].advantages(torch.tensor([[2.2]])).item() == pytest.approx(0.0)


def test_reinforce_takes_the_penalty_from_the_reward_unless_told_otherwise() -> None:
    assert isinstance(REINFORCELoss(beta=0.1).kl, KLInReward)
    assert isinstance(REINFORCELoss(beta=0.1, kl=K3()).kl, K3)


def test_a_group_of_one_answer_is_for_reinforce_alone() -> None:
    one = groups_of([[[-1.0, -2.0]]])
    assert REINFORCELoss()(one, one, torch.ones(1, 1)).item() == -2.0
    with pytest.raises(ValueError, match=r"^RLOOLoss: a group has one answer, and nothing to compare it with; give 2 "):
        RLOOLoss()(one, one, torch.ones(1, 1))
