"""GRPO, Dr. GRPO, DAPO and GSPO, each worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lion_lightning.losses import DAPOLoss, DrGRPOLoss, GRPOLoss, GSPOLoss, PolicyGradientLoss
from tests.unit.losses.chosen_logps import LN2, groups_of, with_tokens

RAGGED = groups_of([[[-1.0], [-1.0, -2.0, -3.0]]])
"""A group of two answers, of one and of three tokens."""
FIRST_IS_RIGHT = torch.tensor([[1.0, 0.0]])


def gradients(loss: PolicyGradientLoss, log_ratios: Sequence[float] = (0.0,) * 4) -> tuple[float, list[float]]:
    """Loss of the ragged group, and its derivative by each token's log-prob.

    Args:
        loss: The loss.
        log_ratios: Of each token, to the policy that sampled.
    """
    values = (RAGGED.tokens.values + torch.tensor(log_ratios)).requires_grad_()
    [value] = loss(with_tokens(RAGGED, values), RAGGED, FIRST_IS_RIGHT, RAGGED)
    [gradient] = torch.autograd.grad(value, values)
    return value.item(), gradient.tolist()


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([10.0, 0.0, 0.0, 0.0], [1.5, -0.5, -0.5, -0.5]),  # mean 2.5, std 5
        ([10.0, 0.0, 0.0, 10.0], [0.8660254, -0.8660254, -0.8660254, 0.8660254]),
        ([1.0, 0.0], [math.sqrt(0.5), -math.sqrt(0.5)]),
        # mean 1/64; squares (63^2 + 63) / 64^2 over 63: std 1/8
        ([1.0] + [0.0] * 63, [7.875] + [-0.125] * 63),
    ],
    ids=["one of four", "two of four", "two answers", "64 answers"],
)
def test_advantages_are_in_standard_deviations_of_a_sample(rewards: list[float], expected: list[float]) -> None:
    for loss in (GRPOLoss(eps=1e-8), DAPOLoss(eps=1e-8), GSPOLoss(eps=0.0)):
        assert loss.advantages(torch.tensor([rewards]))[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_eps_is_added_to_the_deviation_and_without_scale_there_is_none() -> None:
    rewards = torch.tensor([[10.0, 0.0, 0.0, 0.0]])
    assert GRPOLoss(eps=5.0).advantages(rewards)[0].tolist() == [0.75, -0.25, -0.25, -0.25]
    centered = [7.5, -2.5, -2.5, -2.5]
    assert GRPOLoss(scale=False).advantages(rewards)[0].tolist() == centered
    assert DrGRPOLoss(max_tokens=8).advantages(rewards)[0].tolist() == centered


@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e-4])
@pytest.mark.parametrize("number", [2, 3, 7, 64])
def test_equal_rewards_have_advantages_of_exactly_zero(eps: float, number: int) -> None:
    rewards = torch.full((1, number), 0.1)  # whose mean is rounded
    assert not GRPOLoss(eps=eps).advantages(rewards).any()
    assert not DrGRPOLoss(max_tokens=8).advantages(rewards).any()


def test_each_answer_weighs_the_same_under_grpo() -> None:
    # -A / (2 answers x its tokens)
    value, gradient = gradients(GRPOLoss(scale=False))
    assert value == 0.0
    assert gradient == pytest.approx([-0.25, *[0.5 / 6] * 3])


def test_each_token_weighs_the_same_under_dr_grpo_by_a_constant() -> None:
    # -A / (2 answers x 8)
    value, gradient = gradients(DrGRPOLoss(max_tokens=8))
    assert value == pytest.approx((-0.5 + 3 * 0.5) / 16)
    assert gradient == pytest.approx([-0.5 / 16, *[0.5 / 16] * 3])


def test_each_token_of_the_step_weighs_the_same_under_dapo() -> None:
    loss = DAPOLoss(scale=False)
    value, gradient = gradients(loss)
    assert value == pytest.approx(-0.5 + 3 * 0.5)
    assert gradient == [-0.5, 0.5, 0.5, 0.5]
    assert loss.num_items(RAGGED) == 4
    assert GRPOLoss().num_items(RAGGED) == DrGRPOLoss(max_tokens=8).num_items(RAGGED) == 1


def test_dapo_clips_later_above_than_below() -> None:
    loss = DAPOLoss(scale=False)
    logs = [math.log(ratio) for ratio in (1.25, 1.0, 0.75, 1.0)]
    # the first is within 1.28; the third, of a wrong answer, is clipped at 0.8
    value, gradient = gradients(loss, logs)
    assert value == pytest.approx(0.5 * (-1.25 + 1.0 + 0.8 + 1.0))
    assert gradient == pytest.approx([-0.625, 0.5, 0.0, 0.5])
    value, gradient = gradients(loss, [math.log(1.5), 0.0, 0.0, 0.0])
    assert value == pytest.approx(0.5 * (-1.28 + 3.0))
    assert gradient[0] == 0.0
    assert gradients(DAPOLoss(scale=False, clip_high=None), logs)[1][0] == 0.0  # None: 0.2 on both sides


def test_the_ratio_of_gspo_is_the_geometric_mean_of_the_answers_ratios() -> None:
    loss = GSPOLoss(scale=False, clip_low=0.9, clip_high=9.0)
    value, gradient = gradients(loss, [LN2, 3 * LN2, 0.0, 0.0])
    # 2 for both answers: (8 x 1 x 1)^(1/3)
    assert value == pytest.approx(-0.5 + 0.5)
    assert gradient == pytest.approx([-0.5 * 2 / 2, *[0.5 * 2 / 6] * 3])


def test_gspo_clips_answers_and_closer_than_grpo() -> None:
    value, gradient = gradients(GSPOLoss(scale=False), [1e-3, 1e-3, 1e-3, 1e-3])
    # the right answer is clipped at 1.0004, the wrong one may fall from e^0.001
    assert value == pytest.approx((-0.5 * 1.0004 + 0.5 * math.exp(1e-3)) / 2)
    assert gradient == pytest.approx([0.0, *[0.5 * math.exp(1e-3) / 6] * 3])
    value, gradient = gradients(GSPOLoss(scale=False), [-1e-3] * 4)
    assert value == pytest.approx((-0.5 * math.exp(-1e-3) + 0.5 * 0.9997) / 2)
    assert gradient == pytest.approx([-0.5 * math.exp(-1e-3) / 2, 0.0, 0.0, 0.0])


def test_tulu_3_1_is_dapo_with_its_numbers() -> None:
    loss = DAPOLoss(beta=0.01, eps=1e-8, clip_high=None)
    start = groups_of([[[-1.0], [-1.0], [-1.0], [-1.0]]])
    rewards = torch.tensor([[10.0, 0.0, 0.0, 0.0]])

    def first(log_ratio: float) -> tuple[float, float]:
        """Loss of the first token, whose advantage is 1.5, and its derivative."""
        values: Tensor = (start.tokens.values + torch.tensor([log_ratio, 0.0, 0.0, 0.0])).requires_grad_()
        [total] = loss(with_tokens(start, values), start, rewards)  # old: as it is now
        return total.item() - 3 * 0.5, torch.autograd.grad(total, values)[0][0].item()

    assert first(0.0) == pytest.approx((-1.5, -1.5))
    # k3(ln 2) = 0.1931472, of which the derivative is 1 - 1/2
    assert first(LN2) == pytest.approx((-1.5 + 0.01 * 0.1931472, -1.495))
    assert first(-LN2) == pytest.approx((-1.5 + 0.01 * 0.3068528, -1.5 - 0.01))


@pytest.mark.parametrize("eps", [-1e-8, float("inf"), float("nan")])
def test_an_eps_that_is_no_number_of_at_least_zero_is_refused(eps: float) -> None:
    with pytest.raises(ValueError, match=rf"^DAPOLoss: eps is {eps}; give a number of at least 0$"):
        DAPOLoss(eps=eps)


@pytest.mark.parametrize("tokens", [0, -5])
def test_dr_grpo_refuses_a_constant_below_one(tokens: int) -> None:
    rule = "DrGRPOLoss: max_tokens is {}; give a number of at least 1, the sampler's max_new_tokens"
    with pytest.raises(ValueError, match=f"^{rule.format(tokens)}$"):
        DrGRPOLoss(max_tokens=tokens)


@pytest.mark.parametrize("loss", [GRPOLoss(), DrGRPOLoss(max_tokens=8), DAPOLoss(), GSPOLoss()])
def test_a_group_of_one_answer_is_refused(loss: PolicyGradientLoss) -> None:
    one = groups_of([[[-1.0, -2.0]]])
    rule = f"{type(loss).__name__}: a group has one answer, and nothing to compare it with; give 2 or more"
    with pytest.raises(ValueError, match=f"^{rule}$"):
        loss(one, one, torch.ones(1, 1))
