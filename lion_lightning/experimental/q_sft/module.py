"""Q-SFT: offline Q-learning in which the probability of a token is taught to be behaviour times value."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from typing_extensions import override

from lion_lightning.distributed.replicas import tensor_parallel_size
from lion_lightning.experimental.q_sft.log_ratios import Head, max_log_ratio
from lion_lightning.experimental.q_sft.loss import ActionLogps, QSFTLoss, UniformRest
from lion_lightning.losses.base import out_of_range
from lion_lightning.losses.policy_gradients.kl import LARGEST_LOG_RATIO
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.modules.trainer.batches import refuse_rounds
from lion_lightning.references.base import FrozenReference, MixedReference
from lion_lightning.references.store import answer_counts
from lion_lightning.types import LossOutput, PackedBatch


class QSFTModule(AlignmentModule):
    r"""Trains a policy on trajectories with rewards, good and bad ones (Q-SFT, arXiv 2411.05193). Experimental.

    A state is the prompt with all tokens so far, an action the next token of an assistant turn. With a behaviour model
    :math:`\pi_\phi`, fine-tuned on all of the trajectories before, the value of an action is learned as

    .. math::
        p_\theta(a|s) \to \pi_\phi(a|s)\, Q(s, a), \qquad
        y_t = r_t + \gamma \max_{a'} p_{\bar\theta}(a'|s_{t+1}) / \pi_\phi(a'|s_{t+1})

    where the next state of a turn's last token is that before the next turn's first: other turns are the environment.
    The target network :math:`\bar\theta` follows the policy after every step. Logs ``loss``, ``q/target`` (mean of y)
    and ``q/clipped`` (share of targets that were above 1, the most that a reward can be worth).

    The policy itself is no better than the behaviour: :class:`~lion_lightning.experimental.q_sft.QSFTSampler` draws
    from what both say. All three models are in memory.

    Args:
        policy: How to build the policy; a string is short for ``PolicySpec(path=...)``. The paper starts from the
            pretrained model.
        behaviour: The behaviour model, of the policy's vocabulary: a model or a folder, such as an export of SFT.
        loss: What the rest of a label goes to; None for :class:`UniformRest`.
        gamma: Discount a token, from 0 to 1.
        alpha: Weight of the policy in the target network after each step, above 0 and at most 1.
        floor: Actions that the behaviour gives less probability do not count for the maximum, between 0 and 1.
        **kwargs: Further arguments of :class:`AlignmentModule`; the default learning rate is 2e-5.

    Raises:
        ValueError: A number is out of range.
    """

    items = "supervised tokens"
    typical_answers = 1

    def __init__(
        self,
        policy: PolicySpec | str | dict[str, Any],
        behaviour: PolicySpec | str | dict[str, Any],
        *,
        loss: QSFTLoss | None = None,
        gamma: float = 1.0,
        alpha: float = 0.05,
        floor: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy=policy, **kwargs)
        for name, value, good, rule in (
            ("gamma", gamma, 0 <= gamma <= 1, "from 0 to 1"),
            ("alpha", alpha, 0 < alpha <= 1, "above 0 and at most 1"),
            ("floor", floor, 0 < floor < 1, "between 0 and 1"),
        ):
            if not good:
                raise out_of_range(self, name, value, rule)
        self.loss, self.gamma, self.floor = loss or UniformRest(), gamma, floor
        self.behaviour, self.target = FrozenReference(PolicySpec.of(behaviour)), MixedReference(alpha)
        self.behaviour.place = "model.behaviour"

    @override
    def setup(self, stage: str) -> None:
        """Refuse heads of which each rank has a part of the vocabulary."""
        super().setup(stage)
        strategy = self.trainer.strategy
        if tensor_parallel_size(strategy) > 1:
            raise MisconfigurationException(
                f"{type(self).__name__} compares models over the whole vocabulary, of which a rank has a part under "
                f"tensor parallelism; set tensor_parallel_size: 1 of {type(strategy).__name__}"
            )

    @override
    def configure_model(self) -> None:
        """Build the policy, its target network and the behaviour model."""
        super().configure_model()
        self.loss.check(self.policy_model)
        for reference in (self.behaviour, self.target):
            reference.attach(self.policy_model, self.build)
        self._require_same_vocabulary()

    @override
    def require_data(self, data: Any) -> None:
        refuse_rounds(self, data)

    @override
    def require_kind(self, batch: PackedBatch) -> None:
        """Take trajectories only: answers, each with a reward from 0 to 1."""
        super().require_kind(batch)
        counts = answer_counts(batch)
        if batch.pairs or counts.sum() != len(batch.targets) or not counts.all():
            raise ValueError(
                f"{type(self).__name__} trains on trajectories with rewards, and the batch holds something else; use "
                "lion_lightning.experimental.q_sft.TrajectoryDataModule"
            )
        wrong = next((value for value in batch.values if not 0 <= value <= 1), None)
        if wrong is not None:
            raise ValueError(f"{type(self).__name__}: a trajectory has the reward {wrong}; give numbers from 0 to 1")
        self.loss.check_batch(batch)

    @override
    def compute_loss(self, batch: PackedBatch) -> LossOutput:
        q, clipped = self.targets(batch)
        logps: ActionLogps = self.policy_model(batch, self.loss.read)
        losses = self.loss(logps, q)
        metrics = {"q/target": q.sum(), "q/clipped": clipped.sum()}
        return LossOutput(losses.sum(), torch.full((), len(losses), device=losses.device), metrics)

    @torch.no_grad()
    def targets(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """``(targets,)`` value y of each target, from 0 to 1, and whether it was above 1 before; without a gradient."""
        best = self.best_values(batch)
        # The next state of a target is the one that the next target of its trajectory is predicted from.
        raw = torch.cat([self.gamma * best[1:], best[:1]])
        bounds = batch.target_bounds()
        ends = torch.from_numpy(bounds[np.array(batch.answers, np.int64) + 1] - 1)  # each has a target
        rewards = torch.from_numpy(np.array(batch.values, np.float32))
        raw[ends.to(raw.device, non_blocking=True)] = rewards.to(raw.device, non_blocking=True)
        return raw.clamp(max=1.0), raw > 1

    def best_values(self, batch: PackedBatch) -> Tensor:
        """``(targets,)`` fp32 value of the best action in the state before each target, by the target network."""
        behaviour, target = self.behaviour.model, self.target.model
        assert behaviour is not None, "call configure_model() first"
        assert target is not None

        def read(*of_target: Any) -> Tensor:
            own = _head(*of_target)
            # Within this model's forward pass, where its head is whole, however it is sharded.
            ratios: Tensor = behaviour(batch, lambda *other: max_log_ratio(own, _head(*other), self.floor))
            return ratios.clamp(max=LARGEST_LOG_RATIO).exp()

        best: Tensor = target(batch, read)
        return best

    @override
    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step, then let the target network follow."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.target.after_step(self.global_step + 1, self.policy_model)  # Lightning counts when this returns

    @override
    def provenance(self) -> dict[str, Any]:
        behaviour = self.behaviour.spec
        assert behaviour is not None
        return {**super().provenance(), "behaviour": behaviour.path or "a model made of a config"}

    def _require_same_vocabulary(self) -> None:
        spec, model = self.behaviour.spec, self.behaviour.model
        assert spec is not None
        assert model is not None
        sizes = [each.head()[0].shape[0] for each in (self.policy_model, model)]
        same = sizes[0] == sizes[1]
        with suppress(ValueError):  # a folder without a tokenizer says no more than its size
            theirs = TokenizerSpec(str(spec.path), revision=spec.revision).load() if spec.path else None
            same = same and (theirs is None or theirs.get_vocab() == self.tokenizer_spec.load().get_vocab())
        if not same:
            raise ValueError(
                f"model.behaviour: {spec.path or 'the model'} has another vocabulary than the policy ({sizes[1]} and "
                f"{sizes[0]} rows), and tokens are compared one by one; fine-tune a copy of the policy's own base"
            )


def _head(model: PolicyModel, hidden: Tensor, batch: PackedBatch) -> Head:
    """The output head over the states of the targets: a :data:`~lion_lightning.models.policy.Read`."""
    weight, bias = model.head()
    return Head(hidden[batch.logit_positions], weight, bias, model.transform)
