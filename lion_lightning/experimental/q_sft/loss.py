"""Losses of Q-SFT: cross-entropy with the value of an action as its label."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from lion_lightning.models.policy import PolicyModel
from lion_lightning.types import PackedBatch


class ActionLogps(NamedTuple):
    """Log-probs at each target of a batch.

    Attributes:
        actions: ``(targets,)`` fp32 log-prob of each target; differentiable.
        rest: ``(targets,)`` log-prob that what is left of its label is worth.
    """

    actions: Tensor
    rest: Tensor


class QSFTLoss(nn.Module, ABC):
    r"""Cross-entropy :math:`-(y \log p(a) + (1 - y) \log p(\text{rest}))` with the value y of action a as its label.

    A subclass says what the rest of the label goes to. With y = 1 it is the negative log-likelihood.
    """

    def check(self, policy: PolicyModel) -> None:
        """Refuse a model that the loss is not exact for."""

    def check_batch(self, batch: PackedBatch) -> None:
        """Refuse data that the loss is not meant for."""

    @abstractmethod
    def read(self, policy: PolicyModel, hidden: Tensor, batch: PackedBatch) -> ActionLogps:
        """Log-probs of a batch, within the forward pass: a :data:`~lion_lightning.models.policy.Read`."""

    @override
    def forward(self, logps: ActionLogps, q: Tensor) -> Tensor:
        """``(targets,)`` loss of each target.

        Args:
            logps: What :meth:`read` gave.
            q: ``(targets,)`` value of each action, from 0 to 1.
        """
        return -(q * logps.actions + (1 - q) * logps.rest)


class UniformRest(QSFTLoss):
    """The rest goes to all other tokens alike (arXiv 2411.05193, eq. 3).

    So every other token, also one that nobody would write, is taught a probability of about ``(1 - y) / vocabulary``.
    """

    @override
    def check(self, policy: PolicyModel) -> None:
        if policy.transform.softcap is not None:
            raise ValueError(
                f"{type(self).__name__}: the model caps its logits, so that their mean is not that of its hidden "
                "state; use DummyRest (model.loss)"
            )

    @override
    def read(self, policy: PolicyModel, hidden: Tensor, batch: PackedBatch) -> ActionLogps:
        weight, bias = policy.head()
        logps, states, targets = policy.logps(hidden, batch).values, hidden[batch.logit_positions], batch.targets
        # The mean logit over the vocabulary, less that of the target: of weights, without the logits of the others.
        gaps = (states.float() * (weight.mean(0, dtype=torch.float32) - weight[targets].float())).sum(-1)
        if bias is not None:
            gaps = gaps + bias.mean(dtype=torch.float32) - bias[targets].float()
        number = len(weight)
        # sum_{v != a} log p(v) / (V - 1) = log p(a) + (mean_v z(v) - z(a)) V / (V - 1)
        return ActionLogps(logps, logps + policy.transform.scale * gaps * number / (number - 1))


class DummyRest(QSFTLoss):
    """The rest goes to one token that is no action: the other tokens learn nothing, and the optimum is exact.

    Args:
        token_id: A token that the data does not hold, such as a padding token of its own.
    """

    def __init__(self, token_id: int) -> None:
        super().__init__()
        self.token_id = token_id

    @override
    def check(self, policy: PolicyModel) -> None:
        rows = policy.head()[0].shape[0]
        if not 0 <= self.token_id < rows:
            raise ValueError(f"DummyRest: token_id is {self.token_id}, and the model has tokens 0 to {rows - 1}")

    @override
    def check_batch(self, batch: PackedBatch) -> None:
        if bool((batch.on_cpu().input_ids == self.token_id).any()):
            raise ValueError(
                f"DummyRest: the data holds token {self.token_id}, which is to be no action; give the id of a token "
                "that it does not hold (model.loss.token_id), or use UniformRest"
            )

    @override
    def read(self, policy: PolicyModel, hidden: Tensor, batch: PackedBatch) -> ActionLogps:
        places, actions = batch.logit_positions, batch.targets
        dummies = torch.full_like(actions, self.token_id)
        both = replace(batch, logit_positions=torch.cat([places, places]), targets=torch.cat([actions, dummies]))
        return ActionLogps(*torch.tensor_split(policy.logps(hidden, both).values, 2))
