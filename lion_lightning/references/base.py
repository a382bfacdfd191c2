"""What a policy is compared with: a switch, not a fork of the module. Each reference gives the log-probs of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.weights.dtensor import is_sharded, reshard, to_local
from lion_lightning.ops.logprobs import pair_logps
from lion_lightning.types import PackedBatch, PairLogps, TokenLogps

Build = Callable[[PolicySpec | None], PolicyModel]
"""Builds a model from a spec, with the policy's tokenizer; from None, the policy as it was when the stage began."""


class Reference(nn.Module, ABC):
    """Log-probs of a batch of pairs under what the policy is compared with. Always in evaluation mode.

    The module calls :meth:`attach` once, when the policy has just been built, then :meth:`precompute` with all batches
    to come, the reference itself with each batch, and :meth:`before_epoch` and :meth:`after_step` in training.
    """

    @override
    def train(self, mode: bool = True) -> Reference:
        """Stay in evaluation mode."""
        return super().train(False)

    def attach(self, policy: PolicyModel, build: Build) -> None:
        """Take what is needed of the policy as the stage starts from it; a second call is of no effect.

        Args:
            policy: The policy, before any training.
            build: Builds further models.

        Raises:
            ValueError: If this reference cannot be had of this policy.
        """

    @abstractmethod
    @override
    def forward(self, batch: PackedBatch, policy: PolicyModel) -> PairLogps:
        """Log-probs of the batch's pairs, without a gradient.

        Args:
            batch: Preference pairs on the policy's device.
            policy: The policy as it is now.
        """

    def precompute(self, batches: Iterable[PackedBatch], policy: PolicyModel, ranks: Ranks, title: str) -> None:
        """Compute log-probs before they are needed, where the reference allows that.

        Args:
            batches: This rank's share of all batches to come, as many on every rank.
            policy: The policy as it is now.
            ranks: This process among the ranks of the run.
            title: What the batches are, for the progress bar.
        """

    def before_epoch(self, epoch: int, policy: PolicyModel) -> bool:
        """Whether the reference changes with this epoch, so that everything must be precomputed again.

        Args:
            epoch: Number of the epoch that begins, from 0.
            policy: The policy as it is now.
        """
        return False

    def after_step(self, step: int, policy: PolicyModel) -> None:
        """Follow the policy, if this reference does.

        Args:
            step: Optimizer steps done.
            policy: The policy as it is now.
        """

    def identity(self) -> dict[str, Any]:
        """What the reference is, in plain data: goes into checkpoints, and back to :meth:`restore`."""
        return {"kind": type(self).__name__}

    def restore(self, identity: Mapping[str, Any]) -> None:
        """Be what a checkpoint says.

        Args:
            identity: From :meth:`identity`.
        """


class NoReference(Reference):
    """None: every log-prob is zero. For losses that compare the policy with nothing (SimPO, ORPO, CPO)."""

    @override
    def forward(self, batch: PackedBatch, policy: PolicyModel) -> PairLogps:
        zeros = torch.zeros(len(batch.targets), device=batch.targets.device)
        return pair_logps(TokenLogps(zeros, zeros, zeros), batch)


class AdapterOffReference(Reference):
    """The policy with its LoRA adapters switched off: no second model, a second forward each step."""

    @override
    def attach(self, policy: PolicyModel, build: Build) -> None:
        with policy.adapters_off():
            pass

    @torch.no_grad()
    @override
    def forward(self, batch: PackedBatch, policy: PolicyModel) -> PairLogps:
        with policy.adapters_off():
            return pair_logps(policy(batch), batch)


class FrozenReference(Reference):
    """A second model in memory: a copy of the policy as the stage starts from it, or any model by name.

    Its weights are in the checkpoints, so that a resumed run needs nothing else.

    Args:
        model: The model; None for a copy of the policy.
    """

    def __init__(self, model: PolicySpec | str | None = None) -> None:
        super().__init__()
        self.spec = None if model is None else PolicySpec.of(model)
        self.model: PolicyModel | None = None

    @override
    def attach(self, policy: PolicyModel, build: Build) -> None:
        if self.model is None:
            made = _copy(policy, build) if self.spec is None else build(self.spec)
            self.model = made.requires_grad_(False).eval()

    @torch.no_grad()
    @override
    def forward(self, batch: PackedBatch, policy: PolicyModel) -> PairLogps:
        assert self.model is not None, "call attach() first"
        return pair_logps(self.model(batch), batch)


class MixedReference(FrozenReference):
    r"""A copy that follows the policy (TR-DPO, arXiv 2404.09656).

    Every ``every_n_steps`` optimizer steps, :math:`\pi_{ref} \leftarrow \alpha\,\pi + (1 - \alpha)\,\pi_{ref}`. An
    ``alpha`` of 1 is the hard update; the paper's soft one has 0.6 at every step.

    Args:
        alpha: Weight of the policy, above 0 and at most 1.
        every_n_steps: Optimizer steps between updates.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, alpha: float = 0.6, every_n_steps: int = 1) -> None:
        super().__init__()
        if not 0 < alpha <= 1:
            raise ValueError(f"MixedReference: alpha is {alpha}; give a weight above 0 and at most 1")
        if every_n_steps < 1:
            raise ValueError(f"MixedReference: every_n_steps is {every_n_steps}; give at least 1")
        self.alpha, self.every_n_steps = alpha, every_n_steps

    @torch.no_grad()
    @override
    def after_step(self, step: int, policy: PolicyModel) -> None:
        assert self.model is not None, "call attach() first"
        if step % self.every_n_steps == 0:
            own, theirs = (_pieces(model) for model in (self.model, policy))
            torch._foreach_lerp_(own, theirs, self.alpha)


@torch.no_grad()
def _copy(policy: PolicyModel, build: Build) -> PolicyModel:
    """A model with the policy's weights, sharded as the policy is; a sharded module cannot be copied as such."""
    if not is_sharded(policy):
        return deepcopy(policy)
    copy = build(None)
    torch._foreach_copy_(_pieces(copy), _pieces(policy))
    return copy


def _pieces(model: PolicyModel) -> list[Tensor]:
    """What this rank holds of each weight."""
    reshard(model)
    return [to_local(parameter.detach()) for parameter in model.parameters()]
