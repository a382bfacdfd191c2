"""What holds for every loss of single answers and of groups."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.autograd import gradcheck

from lion_lightning import losses
from lion_lightning.losses import (
    AllPairsLoss,
    AnswerLoss,
    DrGRPOLoss,
    GroupLoss,
    HingeLoss,
    PolicyGradientLoss,
    UnlikelihoodLoss,
)
from lion_lightning.types import AnswerLogps
from tests.unit.losses.chosen_logps import in_groups, random_answers, with_tokens


def concrete(base: type) -> list[Any]:
    found = [getattr(losses, name) for name in losses.__all__]
    return [loss for loss in found if inspect.isclass(loss) and issubclass(loss, base) and not inspect.isabstract(loss)]


OF_ANSWERS, OF_GROUPS = concrete(AnswerLoss), concrete(GroupLoss)
REQUIRED: dict[Any, dict[str, Any]] = {DrGRPOLoss: {"max_tokens": 12}}
EVERY: list[Any] = [loss(**REQUIRED.get(loss, {})) for loss in [*OF_ANSWERS, *OF_GROUPS]]
EVERY.append(AllPairsLoss(HingeLoss(), "sum"))
LABELS = torch.tensor([True, False, True, True, False, False])
VALUES = torch.tensor([[0.0, 1.0, 0.5], [0.3, 0.3, 0.9]])

every = pytest.mark.parametrize("loss", EVERY, ids=lambda loss: type(loss).__name__)


def given(loss: Any, answers: AnswerLogps) -> AnswerLogps:
    """Six answers, as the loss takes them."""
    return answers if isinstance(loss, AnswerLoss) else in_groups(answers, 2)


def called(loss: Any, policy: AnswerLogps, reference: AnswerLogps) -> Tensor:
    both = given(loss, policy), given(loss, reference)
    if isinstance(loss, AnswerLoss):
        result: Tensor = loss(*both, LABELS)
    elif isinstance(loss, PolicyGradientLoss):
        result = loss(*both, VALUES, both[1])  # the reference stands for the policy that sampled, too
    else:
        result = loss(*both, VALUES)
    return result


def test_all_that_the_package_has_is_here() -> None:
    assert [loss.__name__ for loss in OF_ANSWERS] == ["APOZeroUnpairedLoss", "BCOLoss", "KTOLoss", "UnlikelihoodLoss"]
    assert [loss.__name__ for loss in OF_GROUPS] == [
        *("AllPairsLoss", "DAPOLoss", "DrGRPOLoss", "GRPOLoss", "GSPOLoss", "LambdaLoss", "PlackettLuceLoss"),
        *("REINFORCELoss", "RLOOLoss"),
    ]


@every
def test_gradient_is_the_derivative(loss: Any) -> None:
    policy, reference = random_answers()

    def total(values: Tensor) -> Tensor:
        return called(loss.eval(), with_tokens(policy, values), reference)

    assert gradcheck(total, policy.tokens.values.clone().requires_grad_())


@every
def test_losses_and_rewards_are_finite_and_one_each(loss: Any) -> None:
    policy, reference = random_answers()
    values = called(loss, policy, reference)
    assert values.shape == ((6,) if isinstance(loss, AnswerLoss) else (2,))
    assert values.isfinite().all()
    rewards = loss.rewards(given(loss, policy), given(loss, reference))
    assert rewards.shape == ((6,) if isinstance(loss, AnswerLoss) else (2, 3))
    same = loss.rewards(given(loss, policy), given(loss, policy))
    assert (same < 0).all() if isinstance(loss, UnlikelihoodLoss) else (same == 0).all()


@every
def test_nothing_gives_no_losses_and_a_gradient_of_nothing(loss: Any) -> None:
    policy, reference = random_answers(0)
    logps = policy.tokens.values.requires_grad_()
    if isinstance(loss, AnswerLoss):
        loss.observe_mismatched(policy, reference)
        values = loss(policy, reference, LABELS[:0])
    else:
        shape = torch.zeros(0, 3)
        policy, reference = (AnswerLogps(each.tokens, each.owners, shape) for each in (policy, reference))
        values = loss(policy, reference, VALUES[:0])
    assert values.shape == (0,)
    values.sum().backward()
    assert logps.grad is not None
    loss.after_step(lambda total: total)
    assert all(buffer.isfinite().all() for buffer in loss.buffers())


@every
def test_bf16_log_probs_are_finite_and_near(loss: Any) -> None:
    policy, reference = random_answers()
    rounded = [with_tokens(each, each.tokens.values.bfloat16()) for each in (policy, reference)]
    exact = called(loss.eval(), policy, reference)
    torch.testing.assert_close(called(loss, *rounded).double(), exact, rtol=0.05, atol=0.05)


@every
def test_a_step_of_one_answer_or_group_at_a_time_has_the_same_losses(loss: Any) -> None:
    policy, reference = random_answers()
    loss.eval()
    whole = called(loss, policy, reference)
    found = []
    size = 1 if isinstance(loss, AnswerLoss) else 3
    for first in range(0, 6, size):
        rows = torch.arange(first, first + size)
        parts = [each.take(rows) for each in (policy, reference)]
        if isinstance(loss, AnswerLoss):
            found.append(loss(*parts, LABELS[rows]))
        else:
            policies = [in_groups(part, 1) for part in parts]
            old = policies[1:] if isinstance(loss, PolicyGradientLoss) else []
            found.append(loss(*policies, VALUES[first // 3][None], *old))
    torch.testing.assert_close(torch.cat(found), whole)


@pytest.mark.parametrize("loss", [*OF_ANSWERS, *OF_GROUPS], ids=lambda loss: loss.__name__)
def test_yaml_names_a_loss_by_its_class_path(loss: Any) -> None:
    base = AnswerLoss if issubclass(loss, AnswerLoss) else GroupLoss
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=base)
    arguments = REQUIRED.get(loss, {})
    if loss.zero_beta or "beta" in inspect.signature(loss).parameters:
        arguments = {**arguments, "beta": 0.25}
    chosen = {"class_path": f"lion_lightning.losses.{loss.__name__}", "init_args": arguments}
    built = parser.instantiate(parser.parse_object({"loss": chosen})).loss
    assert type(built) is loss
    if "beta" in arguments:
        assert built.beta == 0.25
        low, rule = (-0.1, "of at least 0") if loss.zero_beta else (0.0, "above 0")
        with pytest.raises(ValueError, match=rf"^{loss.__name__}: beta is {low}; give a number {rule}$"):
            loss(**arguments | {"beta": low})
