"""Losses of Q-SFT, by hand: labels, gradients, optima."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lion_lightning.experimental.q_sft.log_ratios import Head, max_log_ratio
from lion_lightning.experimental.q_sft.loss import DummyRest, QSFTLoss, UniformRest
from lion_lightning.models.policy import PolicyModel
from lion_lightning.ops.chunked_logprobs import LogitTransform
from lion_lightning.types import PackedBatch
from tests import tiny


class Table:
    """A policy whose hidden states are its logits."""

    logps, transform = PolicyModel.logps, LogitTransform()

    def __init__(self, vocabulary: int) -> None:
        self.weight = torch.eye(vocabulary)

    def head(self) -> tuple[Tensor, None]:
        return self.weight, None


def losses(loss: QSFTLoss, logits: Tensor, actions: list[int], q: list[float]) -> Tensor:
    """Loss of an action in each row of logits."""
    number = len(actions)
    policy: Any = Table(logits.shape[1])
    batch: Any = PackedBatch(
        torch.zeros(number), torch.zeros(number), (), torch.arange(number), torch.tensor(actions), torch.zeros(number)
    )
    read = loss.read(policy, logits, batch)
    return loss.forward(read, torch.tensor(q))


BOTH = pytest.mark.parametrize("loss", [UniformRest(), DummyRest(4)], ids=["uniform", "dummy"])


@BOTH
def test_of_uniform_logits_it_is_the_log_of_the_vocabulary_whatever_the_value(loss: QSFTLoss) -> None:
    found = losses(loss, torch.zeros(3, 5), [0, 1, 2], [0.0, 0.3, 1.0])
    torch.testing.assert_close(found, torch.full((3,), math.log(5)))


@BOTH
@pytest.mark.parametrize("y", [0.0, 0.3, 1.0])
def test_the_gradient_is_softmax_minus_the_label(loss: QSFTLoss, y: float) -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0, 0.1, 0.7]], requires_grad=True)
    torch.autograd.backward(losses(loss, logits, [2], [y]).sum())
    label = torch.full((5,), (1 - y) / 4) if isinstance(loss, UniformRest) else torch.tensor([0, 0, 0, 0, 1 - y])
    label[2] = y
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0], logits.detach()[0].softmax(-1) - label)


def test_a_value_of_0_is_the_mean_of_the_other_tokens() -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0]])
    others = -logits.log_softmax(-1)[0, [0, 2]].mean()
    assert losses(UniformRest(), logits, [1], [0.0]).item() == pytest.approx(others.item())


@BOTH
def test_a_value_of_1_is_sft_to_the_gradient_of_every_weight(loss: QSFTLoss) -> None:
    model, batch = tiny.policy(), tiny.row()
    read = model(batch, loss.read)
    mine = tiny.gradients(model, loss(read, torch.ones(len(batch.targets))))
    plain = tiny.gradients(model, -model(batch).values)
    assert mine.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(mine[name], gradient, msg=name)


@pytest.mark.parametrize("changes", [{}, {"model_type": "cohere", "logit_scale": 0.25}], ids=["plain", "scaled"])
def test_the_rest_is_read_of_any_model_without_a_table_of_logits(changes: dict[str, Any]) -> None:
    model, batch = tiny.policy(**changes), tiny.row()
    table = tiny.alone_all(model.causal_lm, batch)
    mine = table.gather(1, batch.targets[:, None]).squeeze(1)
    uniform = model(batch, UniformRest().read)
    torch.testing.assert_close(uniform.rest, (table.sum(1) - mine) / (tiny.VOCABULARY - 1), rtol=1e-4, atol=1e-4)
    dummy = model(batch, DummyRest(2).read)
    torch.testing.assert_close(dummy.rest, table[:, 2], rtol=1e-4, atol=1e-4)
    for read in (uniform, dummy):
        torch.testing.assert_close(read.actions, mine, rtol=1e-4, atol=1e-4)


def test_the_optimum_of_the_uniform_rest_leaks_and_that_of_the_dummy_is_behaviour_times_value() -> None:
    """Behaviour (.5, .5, 0, 0), values 1 and .4: p = (.6, .2, .1, .1), so that the first ratio is 1.2, above 1."""
    behaviour, q = torch.tensor([0.5, 0.5]), [1.0, 0.4]
    for loss, optimum in ((UniformRest(), [0.6, 0.2, 0.1, 0.1]), (DummyRest(3), [0.5, 0.2, 1e-9, 0.3])):
        logits = torch.tensor(optimum).log().requires_grad_()
        torch.autograd.backward((behaviour * losses(loss, logits.expand(2, 4), [0, 1], q)).sum())
        assert logits.grad is not None
        torch.testing.assert_close(logits.grad, torch.zeros(4), atol=1e-6, rtol=0)
    heads = [
        Head(torch.ones(1, 1), torch.tensor(probs).log()[:, None])
        for probs in ([0.6, 0.2, 0.1, 0.1], [0.5, 0.5, 1e-9, 1e-9])
    ]
    assert max_log_ratio(heads[0], heads[1], 0.01).exp().item() == pytest.approx(1.2)


def test_what_a_loss_is_not_exact_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"UniformRest: the model caps its logits.*use DummyRest"):
        UniformRest().check(tiny.policy(**tiny.SOFTCAPPED, attention="eager"))
    with pytest.raises(ValueError, match="token_id is 101, and the model has tokens 0 to 100"):
        DummyRest(101).check(tiny.policy())
    batch = tiny.row()
    held = int(batch.input_ids[0])
    with pytest.raises(ValueError, match=f"the data holds token {held}, which is to be no action"):
        DummyRest(held).check_batch(batch)
    DummyRest(2).check_batch(replace(batch))
