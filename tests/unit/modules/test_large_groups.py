"""Groups of 64 answers: the same as each answer alone, in memory that grows with their tokens."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from lion_lightning.losses.policy_gradients.grpo import DAPOLoss, GRPOLoss
from lion_lightning.losses.policy_gradients.reinforce import RLOOLoss
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec
from lion_lightning.ops.logprobs import group_views
from lion_lightning.types import PackedBatch, TokenLogps
from tests.tiny import alone, shallow, trees


@pytest.fixture(scope="module")
def policy() -> PolicyModel:
    torch.manual_seed(0)
    return PolicySpec(config=shallow()).build()


def group(lengths: list[int], seed: int = 0) -> PackedBatch:
    draw = random.Random(seed)
    return trees((7, tuple(lengths), tuple(float(draw.random() < 0.3) for _ in lengths)), seed=seed)


@pytest.mark.parametrize("loss", [GRPOLoss(beta=0.1), DAPOLoss(), RLOOLoss()], ids=lambda loss: type(loss).__name__)
def test_64_answers_are_each_answer_alone(policy: PolicyModel, loss: Any) -> None:
    batch = group([random.Random(number).randint(1, 12) for number in range(64)])
    with torch.no_grad():
        together = policy(batch)
        apart = TokenLogps(alone(policy.causal_lm, batch))
    torch.testing.assert_close(together.values, apart.values, rtol=0, atol=1e-5)
    noise = 0.2 * torch.randn(len(apart.values), generator=torch.Generator().manual_seed(0))
    others = [TokenLogps(apart.values + noise), TokenLogps(apart.values - noise)]  # reference, and policy of the round
    (view,) = group_views(batch)
    assert view.values.shape == (1, 64)
    found = [
        loss(view.logps(own), view.logps(others[0]), view.values, view.logps(others[1])) for own in (together, apart)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    assert found[0].abs() > 1e-3


def test_what_the_backward_pass_needs_grows_with_the_answers(policy: PolicyModel) -> None:
    """Twice the answers, twice the bytes that the forward keeps: nothing is made for each two answers."""
    kept = []
    for answers in (16, 32, 64):
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor, seen: dict[int, int] = storages) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        batch = group([10] * answers)
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            (view,) = group_views(batch)
            own = view.logps(policy(batch))
            loss = GRPOLoss()(own, own.detach(), view.values, own.detach()).sum()
        kept.append(sum(storages.values()))
        loss.backward()
    first, second = kept[1] - kept[0], kept[2] - kept[1]
    assert second == pytest.approx(2 * first, rel=0.02)
