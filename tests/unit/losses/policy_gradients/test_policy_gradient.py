"""What holds for every policy gradient: ratio and clip, the split of a step, numbers without bounds, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lion_lightning import GroupModule
from lion_lightning.losses import (
    K1,
    DAPOLoss,
    DrGRPOLoss,
    GRPOLoss,
    GSPOLoss,
    PolicyGradientLoss,
    REINFORCELoss,
    RLOOLoss,
)
from lion_lightning.types import AnswerLogps, TokenLogps
from tests.unit.losses.chosen_logps import groups_of, in_groups, random_answers, with_tokens

WEIGHTS: dict[str, tuple[PolicyGradientLoss, Callable[[Tensor, int], Tensor]]] = {
    "GRPO": (GRPOLoss(), lambda counts, n: n * counts),
    "GRPO without scale": (GRPOLoss(scale=False), lambda counts, n: n * counts),
    "Dr. GRPO": (DrGRPOLoss(max_tokens=12), lambda counts, n: torch.full_like(counts, n * 12)),
    "DAPO": (DAPOLoss(), lambda counts, n: torch.ones_like(counts)),
    "GSPO": (GSPOLoss(), lambda counts, n: n * counts),
    "RLOO": (RLOOLoss(), lambda counts, n: torch.full_like(counts, n)),
    "REINFORCE": (REINFORCELoss(), lambda counts, n: torch.full_like(counts, n)),
}
"""Each loss, and what the advantages of tokens are divided by: from the tokens of their answer and the group's size."""
every = pytest.mark.parametrize("name", WEIGHTS)


def random_groups(groups: int, n: int, seed: int = 0) -> tuple[AnswerLogps, AnswerLogps, Tensor]:
    """Policy, reference and rewards of groups of ragged answers; two thirds of the rewards are 0."""
    policy, reference = (in_groups(each, groups) for each in random_answers(groups * n, seed))
    generator = torch.Generator().manual_seed(seed)
    return policy, reference, (torch.randint(-1, 2, (groups, n), generator=generator)).clamp_min(0).float()


def fresh(loss: PolicyGradientLoss, beta: float) -> PolicyGradientLoss:
    """A loss of the same class."""
    kind: Any = type(loss)
    made: PolicyGradientLoss = kind(**({"max_tokens": 12} if kind is DrGRPOLoss else {}), beta=beta)
    return made


def taken(groups: AnswerLogps, first: int, number: int) -> AnswerLogps:
    """Some of the groups."""
    n = groups.counts.shape[1]
    return in_groups(groups.take(torch.arange(first * n, (first + number) * n)), number)


@every
@pytest.mark.parametrize("n", [2, 64])
def test_at_ratio_one_the_gradient_is_that_of_log_probs_times_advantages(name: str, n: int) -> None:
    loss, divisors = WEIGHTS[name]
    policy, reference, rewards = random_groups(3, n)
    values = policy.tokens.values.clone().requires_grad_()
    [gradient] = torch.autograd.grad(loss(with_tokens(policy, values), reference, rewards).sum(), values)
    assert gradient.abs().max() > 0
    advantages = loss.advantages(loss.penalized(rewards, reference, policy))
    each = (-advantages / divisors(policy.counts, n)).reshape(-1)[policy.owners]
    torch.testing.assert_close(gradient, each.double())


@every
def test_old_is_the_policy_itself_where_none_is_given(name: str) -> None:
    loss, _ = WEIGHTS[name]
    policy, reference, rewards = random_groups(3, 4)
    found = []
    for old in (None, policy.detach(), policy):
        values = policy.tokens.values.clone().requires_grad_()
        losses = loss(with_tokens(policy, values), reference, rewards, old)
        found.append((losses, *torch.autograd.grad(losses.sum(), values)))
    for losses, gradient in found[1:]:
        assert torch.equal(losses, found[0][0])
        torch.testing.assert_close(gradient, found[0][1])


@every
@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_how_a_step_is_split_changes_no_gradient(name: str, beta: float) -> None:
    loss, _ = WEIGHTS[name]
    loss = fresh(loss, beta)
    # groups of two and of five answers, which never come in one call
    sizes = [random_groups(6, 2), random_groups(4, 5, seed=1)]

    def gradients(parts: list[int]) -> list[Tensor]:
        """Of one step over all groups, each size in so many equal parts."""
        values = [policy.tokens.values.clone().requires_grad_() for policy, *_ in sizes]
        total, items = torch.zeros(()), torch.zeros(())
        for own, (policy, reference, rewards), number in zip(values, sizes, parts, strict=True):
            every, step = with_tokens(policy, own), len(rewards) // number
            for first in range(0, len(rewards), step):
                part, other, old = (taken(each, first, step) for each in (every, reference, reference))
                total = total + loss(part, other, rewards[first : first + step], old).sum()
                items = items + loss.num_items(part)
        return list(torch.autograd.grad(total / items, values))

    whole, split = gradients([1, 1]), gradients([3, 4])
    assert all(gradient.abs().max() > 0 for gradient in whole)
    torch.testing.assert_close(whole, split)


@pytest.mark.parametrize(
    ("ratio", "expected", "slopes"),
    [
        # A = 0.5 and -0.5; -min(rho A, clip(rho) A), and its derivative by the log-prob
        (1.5, (-0.6, 0.75), (0.0, 0.75)),
        (1.1, (-0.55, 0.55), (-0.55, 0.55)),
        (0.5, (-0.25, 0.4), (-0.25, 0.0)),
    ],
)
def test_a_ratio_is_clipped_where_it_went_the_way_of_its_advantage(
    ratio: float, expected: tuple[float, float], slopes: tuple[float, float]
) -> None:
    start, rewards = groups_of([[[-1.0], [-2.0]]]), torch.tensor([[1.0, 0.0]])
    values = (start.tokens.values + torch.tensor(ratio).log()).requires_grad_()
    policy, loss = with_tokens(start, values), GRPOLoss(scale=False)
    [value] = loss(policy, start, rewards, start)
    assert value.item() == pytest.approx(sum(expected) / 2)
    assert torch.autograd.grad(value, values)[0].tolist() == pytest.approx([slope / 2 for slope in slopes])
    metrics = loss.metrics(policy, start, rewards, start)
    assert {key: metric.total.item() for key, metric in metrics.items()} == {
        "ratio": pytest.approx(2 * ratio),
        "clip/low": float(ratio == 0.5),
        "clip/high": float(ratio == 1.5),
    }
    assert all(metric.number == 2 for metric in metrics.values())


def test_without_a_clip_every_ratio_counts() -> None:
    start, rewards = groups_of([[[-1.0], [-2.0]]]), torch.tensor([[1.0, 0.0]])
    policy = with_tokens(start, start.tokens.values + torch.tensor([3.0, 0.25]).log())
    loss = GRPOLoss(scale=False, clip_low=None)
    assert loss(policy, start, rewards, start).item() == pytest.approx((-1.5 + 0.125) / 2)
    metrics = loss.metrics(policy, start, rewards, start)
    assert metrics["clip/low"].total == metrics["clip/high"].total == 0


def test_entropy_is_logged_over_tokens_where_it_is_known() -> None:
    start, rewards = groups_of([[[-1.0, -1.0], [-2.0]]]), torch.tensor([[1.0, 0.0]])
    assert "entropy" not in GRPOLoss().metrics(start, start, rewards)
    known = replace(start, tokens=TokenLogps(start.tokens.values, entropy=torch.tensor([0.5, 1.0, 3.0])))
    entropy = GRPOLoss().metrics(known, start, rewards)["entropy"]
    assert (entropy.total.item(), entropy.number.item()) == (4.5, 3)


@every
def test_a_rank_without_groups_adds_no_items(name: str) -> None:
    loss, _ = WEIGHTS[name]
    empty = AnswerLogps(TokenLogps(torch.zeros(0)), torch.zeros(0).long(), torch.zeros(0, 2))
    rewards = torch.zeros(0, 2)
    assert loss(empty, empty, rewards).shape == (0,)
    assert loss.num_items(empty) == 0
    assert all(total == number == 0 for total, number in loss.metrics(empty, empty, rewards).values())


@every
@pytest.mark.parametrize("shift", [1e4, -1e4, 300.0])
def test_log_ratios_without_bounds_give_no_infinite_loss_and_no_nan(name: str, shift: float) -> None:
    loss, _ = WEIGHTS[name]
    policy, reference, rewards = random_groups(3, 4)
    values = (policy.tokens.values + shift).float().requires_grad_()
    own = with_tokens(policy, values)
    losses = loss(own, own.detach(), rewards, reference)
    [gradient] = torch.autograd.grad(losses.sum(), values)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()


@every
def test_rewards_that_are_all_equal_give_a_loss_and_a_gradient_of_zero(name: str) -> None:
    loss, _ = WEIGHTS[name]
    policy, reference, rewards = random_groups(3, 4)
    if isinstance(loss, REINFORCELoss):  # compares with the mean of the run, here of equal rewards, too
        loss = REINFORCELoss()
        loss(policy, reference, torch.full_like(rewards, 0.25))
        loss.after_step(lambda share: share)
    values = (policy.tokens.values + 300).requires_grad_()  # even where a ratio would be infinite
    no_penalty = fresh(loss, beta=0.0)
    no_penalty.load_state_dict(loss.state_dict())
    losses = no_penalty(with_tokens(policy, values), reference, torch.full_like(rewards, 0.25), reference)
    assert not losses.any()
    assert not torch.autograd.grad(losses.sum(), values)[0].any()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_reward_that_is_not_finite_is_refused(wrong: float) -> None:
    GRPOLoss().check_values([0.0, 1.0, -10.0])
    with pytest.raises(ValueError, match=f"^RLOOLoss: a reward is {wrong}; have the judge give finite numbers$"):
        RLOOLoss().check_values([0.0, wrong])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -0.1}, "beta is -0.1; give a number of at least 0"),
        ({"beta": float("nan")}, "beta is nan; give a number of at least 0"),
        ({"clip_low": 0.0}, "clip_low is 0.0; give a number above 0 and at most 1, or null for no clipping"),
        ({"clip_low": 1.2}, "clip_low is 1.2; give a number above 0 and at most 1, or null for no clipping"),
        ({"clip_high": -0.2}, "clip_high is -0.2; give a number above 0, or null for clip_low"),
        ({"clip_high": float("inf")}, "clip_high is inf; give a number above 0, or null for clip_low"),
        (
            {"clip_low": None, "clip_high": 0.2},
            "clip_high is 0.2; give a number together with clip_low, or null for both",
        ),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    for loss in (GRPOLoss, RLOOLoss, REINFORCELoss, GSPOLoss):
        with pytest.raises(ValueError, match=f"^{loss.__name__}: {message}$"):
            loss(**arguments)


def test_a_penalty_that_is_not_k3_is_added_to_the_loss_of_each_token() -> None:
    start, reference = groups_of([[[-1.0], [-2.0]]]), groups_of([[[-2.0], [-5.0]]])
    loss = GRPOLoss(beta=0.1, kl=K1())
    # the advantages cancel; d is 1 and 3
    assert loss(start, reference, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(0.1 * (1 + 3) / 2)


def test_advantages_of_another_shape_are_refused() -> None:
    class OfGroups(GRPOLoss):
        def advantages(self, rewards: Tensor) -> Tensor:
            return rewards.mean(-1)

    policy, reference, rewards = random_groups(2, 3)
    message = r"^OfGroups.advantages gave a tensor of shape \(2,\) for rewards of shape \(2, 3\); return one for each"
    with pytest.raises(ValueError, match=message):
        OfGroups()(policy, reference, rewards)


def test_a_reference_is_needed_where_there_is_a_penalty() -> None:
    assert not GRPOLoss().needs_reference
    assert GRPOLoss(beta=0.1).needs_reference
    assert RLOOLoss().needs_reference  # a beta of 0.05


def test_answers_of_others_are_refused() -> None:
    message = (
        "^model.loss: RLOOLoss learns from the policy's own answers, and GroupModule trains on those of others; use "
        "lion_lightning.PolicyGradientModule$"
    )
    with pytest.raises(ValueError, match=message):
        GroupModule("nowhere", loss=RLOOLoss())
