"""What holds for every preference loss."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.autograd import gradcheck

from lion_lightning import losses
from lion_lightning.losses import (
    AlphaDivergence,
    BCOPairLoss,
    ForwardKL,
    JensenShannon,
    KTOPairLoss,
    LogisticLoss,
    PreferenceLoss,
    ReferenceFreeLoss,
    SigmoidLoss,
    SimPOLoss,
    WeightedSum,
    WPOLoss,
)
from lion_lightning.types import PairLogps
from tests.unit.losses.chosen_logps import empty_pairs, random_pairs, with_tokens, zeros

SINGLE = [
    loss
    for name in losses.__all__
    if inspect.isclass(loss := getattr(losses, name)) and issubclass(loss, PreferenceLoss)
    if not inspect.isabstract(loss) and loss not in (WeightedSum, WPOLoss)
]
EVERY: list[PreferenceLoss] = [loss() for loss in SINGLE] + [
    SigmoidLoss(0.3, 0.2, ForwardKL()),
    SigmoidLoss(0.3, divergence=JensenShannon()),
    SigmoidLoss(0.3, divergence=AlphaDivergence(0.3)),
    WeightedSum([SigmoidLoss(0.3), BCOPairLoss(0.2), SimPOLoss()], [0.5, 2.0, 1.0]),
    WPOLoss(),
]


def name(loss: Any) -> str:
    return str(loss.__name__)


def kind(loss: Any) -> str:
    return type(loss).__name__


every = pytest.mark.parametrize("loss", EVERY, ids=kind)


def test_all_that_the_package_has_is_here() -> None:
    assert len(SINGLE) == 22


@pytest.mark.parametrize("loss", [loss for loss in EVERY if not isinstance(loss, WPOLoss)], ids=kind)
def test_gradient_is_the_derivative(loss: PreferenceLoss) -> None:
    policy, reference = random_pairs()
    if isinstance(loss, KTOPairLoss):  # its anchors are held fixed; under a likelier reference they stay 0
        reference = zeros(policy)
    loss.eval()

    def total(*values: Tensor) -> Tensor:
        losses: Tensor = loss(PairLogps(*map(with_tokens, policy, values)), reference)
        return losses

    assert gradcheck(total, [side.tokens.values.clone().requires_grad_() for side in policy])


@every
def test_loss_and_rewards_are_one_finite_number_a_pair(loss: PreferenceLoss) -> None:
    policy, reference = random_pairs(7)
    values = loss(policy, reference)
    assert values.shape == (7,)
    assert values.isfinite().all()
    assert [side.shape for side in loss.rewards(policy, reference)] == [(7,), (7,)]


@every
def test_no_pairs_give_no_losses_and_a_gradient_of_nothing(loss: PreferenceLoss) -> None:
    policy, reference = empty_pairs()
    logps = policy.chosen.tokens.values.requires_grad_()
    values = loss.train()(policy, reference)
    assert values.shape == (0,)
    assert values.sum().item() == 0.0
    values.sum().backward()
    assert logps.grad is not None
    assert logps.grad.shape == (0,)
    loss.after_step(lambda total: total)
    assert all(buffer.isfinite().all() for buffer in loss.buffers())


@every
def test_rewards_of_a_policy_that_equals_its_reference_are_zero(loss: PreferenceLoss) -> None:
    policy, _ = random_pairs()
    if not isinstance(loss, ReferenceFreeLoss):
        assert all(side.abs().max() < 1e-12 for side in loss.rewards(policy, policy))
    else:
        assert loss.rewards(policy, policy).chosen.max() < 0, "log-probs themselves"


WITH_BETA = [loss for loss in SINGLE if "beta" in inspect.signature(loss).parameters]


@pytest.mark.parametrize("beta", [0.0, -0.1, float("inf"), float("nan")])
@pytest.mark.parametrize("loss", WITH_BETA, ids=name)
def test_beta_must_be_positive(loss: type[PreferenceLoss], beta: float) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        loss(beta=beta)
    assert str(error.value) == f"{loss.__name__}: beta is {beta}; give a number above 0"


SMOOTHED = [loss for loss in SINGLE if "label_smoothing" in inspect.signature(loss).parameters]


@pytest.mark.parametrize("value", [-0.1, 0.5, 1.0, float("nan")])
@pytest.mark.parametrize("loss", SMOOTHED, ids=name)
def test_label_smoothing_must_be_below_a_half(loss: type[LogisticLoss], value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{loss.__name__}: label_smoothing is {value}; give a number [^\n]*$"):
        loss(label_smoothing=value)


@pytest.mark.parametrize(
    ("loss", "argument", "values"),
    [
        (losses.EXOLoss, "label_smoothing", [0.0]),
        (losses.LDDPOLoss, "alpha", [-0.1, 1.1]),
        (losses.DPOPLoss, "penalty", [-1.0, float("inf")]),
        (losses.RDPOLoss, "alpha", [-1.0, float("inf")]),
        (losses.DiscoPOPLoss, "tau", [0.0, float("inf")]),
        (losses.SimPOLoss, "gamma", [-1.0, float("inf")]),
        (losses.CPOLoss, "alpha", [-1.0, float("inf")]),
    ],
)
def test_an_argument_out_of_range_is_named(loss: Any, argument: str, values: list[float]) -> None:
    for value in [*values, float("nan")]:
        with pytest.raises(ValueError, match=rf"^{loss.__name__}: {argument} is {value}; give a number [^\n]*$"):
            loss(**{argument: value})


@pytest.mark.parametrize("loss", SINGLE, ids=name)
def test_yaml_names_a_loss_by_its_class_path(loss: type[PreferenceLoss]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=PreferenceLoss)
    arguments = {"beta": 0.25} if loss in WITH_BETA else {}
    config = parser.parse_object(
        {"loss": {"class_path": f"lion_lightning.losses.{loss.__name__}", "init_args": arguments}}
    )
    built = parser.instantiate(config).loss
    assert type(built) is loss
    assert built.beta == (0.25 if arguments else 1.0)


def test_yaml_nests_losses_and_divergences() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=PreferenceLoss)
    path = "lion_lightning.losses."
    sigmoid = {
        "class_path": path + "SigmoidLoss",
        "init_args": {"divergence": {"class_path": path + "AlphaDivergence", "init_args": {"alpha": 0.25}}},
    }
    weighted = {"class_path": path + "WPOLoss", "init_args": {"loss": {"class_path": path + "SimPOLoss"}}}
    whole = {"class_path": path + "WeightedSum", "init_args": {"losses": [sigmoid, weighted], "weights": [0.8, 0.2]}}
    built = parser.instantiate(parser.parse_object({"loss": whole})).loss
    first, second = built.parts
    assert isinstance(first.divergence, AlphaDivergence)
    assert first.divergence.alpha == 0.25
    assert isinstance(second.parts[0], SimPOLoss)
    assert built.weights == [0.8, 0.2]
