"""References: log-probs of a batch under the model that a policy is compared with."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.weights.dtensor import is_sharded, reshard, to_local
from lion_lightning.types import PackedBatch, TokenLogps

Build = Callable[[PolicySpec | None], PolicyModel]
"""Builds a model from a spec, with the policy's tokenizer; None builds the policy as it was when the stage began."""


def stored_model(policy: PolicyModel) -> Build:
    """How to build models where no config says it: a policy anew from the folder or hub id that it was loaded from.

    Args:
        policy: A policy around a model of ``from_pretrained``.
    """
    config, dtype = policy.causal_lm.config, str(policy.causal_lm.dtype).removeprefix("torch.")

    def build(spec: PolicySpec | None) -> PolicyModel:
        if spec is None and not config._name_or_path:
            raise ValueError("the policy was not loaded from a folder or the hub, so it cannot be loaded again")
        start = {"path": config._name_or_path, "dtype": dtype, "attention": config._attn_implementation}
        return (spec or PolicySpec.of(start)).build()

    return build


class Reference(nn.Module, ABC):
    """Log-probs of a batch under a reference model, target by target. Always in evaluation mode.

    The module calls :meth:`attach` once, when the policy has just been built, then :meth:`precompute` with all batches
    to come, the reference itself with each batch, and :meth:`before_epoch` and :meth:`after_step` in training. In a
    LightningModule that is no ``AlignmentModule``, the callback ``PrecomputeReference`` does that.
    """

    @override
    def train(self, mode: bool = True) -> Reference:
        """Stay in evaluation mode."""
        return super().train(False)

    def attach(self, policy: PolicyModel, build: Build) -> None:
        """Set up from the policy as it is before any training; a second call does nothing.

        Args:
            policy: The policy.
            build: How to build it anew, and other models: ``AlignmentModule.build``, or :func:`stored_model`.
        """

    @abstractmethod
    @override
    def forward(self, batch: PackedBatch, policy: PolicyModel) -> TokenLogps:
        """Log-probs of the batch's targets, without a gradient.

        Args:
            batch: Trees of answers on the policy's device.
            policy: The policy as it is now.
        """

    def precompute(self, batches: Iterable[PackedBatch], policy: PolicyModel, ranks: Ranks, title: str) -> None:
        """Compute log-probs before they are needed, where the reference allows that.

        Args:
            batches: This rank's share of all batches to come, as many on every rank.
            policy: The policy as it is now.
            ranks: This process among the ranks of the run.
            title: Name of the batches, for the progress bar.
        """

    def before_epoch(self, epoch: int, policy: PolicyModel) -> bool:
        """True if the reference changes with this epoch, so that all must be precomputed again."""
        return False

    def after_step(self, step: int, policy: PolicyModel) -> None:
        """Update a reference that follows the policy, after so many optimizer steps."""

    def identity(self) -> dict[str, Any]:
        """Plain data that checkpoints keep for :meth:`restore`."""
        return {"kind": type(self).__name__}

    def restore(self, identity: Mapping[str, Any]) -> None:
        """Become the reference of a checkpoint."""


class NoReference(Reference):
    """Log-probs of zero, for losses without a reference (SimPO, ORPO, CPO)."""

    @override
    def forward(self, batch: PackedBatch, policy: PolicyModel) -> TokenLogps:
        return TokenLogps(torch.zeros(len(batch.targets), device=batch.targets.device))


class AdapterOffReference(Reference):
    """The policy with its LoRA adapters switched off: a second forward each step, and no second model."""

    @override
    def attach(self, policy: PolicyModel, build: Build) -> None:
        with policy.adapters_off():
            pass  # raises without adapters

    @torch.no_grad()
    @override
    def forward(self, batch: PackedBatch, policy: PolicyModel) -> TokenLogps:
        with policy.adapters_off():
            logps: TokenLogps = policy(batch)
            return logps


class FrozenReference(Reference):
    """A second model in memory: a copy of the policy from before training, or any other model.

    Checkpoints hold its weights, so that a resumed run needs nothing else.

    Args:
        model: The model; None for a copy of the policy.

    Attributes:
        place: Key of the model in a config, for messages.
    """

    def __init__(self, model: PolicySpec | str | None = None) -> None:
        super().__init__()
        self.spec = None if model is None else PolicySpec.of(model)
        self.place = "model.reference.model"
        self.model: PolicyModel | None = None

    @override
    def attach(self, policy: PolicyModel, build: Build) -> None:
        if self.model is not None:  # Lightning may configure the model more than once
            return
        if self.spec is not None:
            with self.errors_at_place():
                model = build(self.spec)
        elif is_sharded(policy):  # which cannot be deep-copied
            model = build(None)
            if not is_sharded(model):
                raise ValueError(
                    f"{type(self).__name__}: a sharded policy cannot be copied: call attach(policy, build) with a "
                    "function that builds and shards another one, or use CachedReference"
                )
            with torch.no_grad():
                torch._foreach_copy_(_shards(model), _shards(policy))
        else:
            model = deepcopy(policy)
        self.model = model.requires_grad_(False).eval()

    @contextmanager
    def errors_at_place(self) -> Iterator[None]:
        """Name this model's key in errors of its spec, which take it for the policy."""
        try:
            yield
        except ValueError as error:
            raise ValueError(re.sub(r"^policy(?=[.:])", self.place, str(error))) from error

    @torch.no_grad()
    @override
    def forward(self, batch: PackedBatch, policy: PolicyModel) -> TokenLogps:
        assert self.model is not None, "call attach() first"
        logps: TokenLogps = self.model(batch)
        return logps


class MixedReference(FrozenReference):
    r"""A copy that follows the policy (TR-DPO, arXiv 2404.09656).

    Every ``every_n_steps`` optimizer steps, :math:`\pi_{ref} \leftarrow \alpha\,\pi + (1 - \alpha)\,\pi_{ref}`. An
    ``alpha`` of 1 is the hard update; the paper's soft one has 0.6 at every step.

    Args:
        alpha: Weight of the policy, above 0 and at most 1.
        every_n_steps: Optimizer steps between updates.
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
            torch._foreach_lerp_(_shards(self.model), _shards(policy), self.alpha)


def _shards(model: PolicyModel) -> list[Tensor]:
    """This rank's shard of each weight."""
    reshard(model)
    return [to_local(parameter.detach()) for parameter in model.parameters()]
