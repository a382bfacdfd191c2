"""Policy gradients: the policy answers, a judge rewards, and better answers of a group become more probable."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.losses.groups.group import GroupLoss
from lion_lightning.losses.policy_gradients.grpo import GRPOLoss
from lion_lightning.losses.policy_gradients.policy_gradient import PolicyGradientLoss
from lion_lightning.models.spec import PolicySpec
from lion_lightning.modules.group import GroupModule
from lion_lightning.modules.online import OnlineModule
from lion_lightning.modules.optimization.run_length import epoch_steps
from lion_lightning.modules.trainer.batches import epoch_batches
from lion_lightning.references.base import NoReference, Reference
from lion_lightning.references.cached import OldPolicy
from lion_lightning.types import AnswerLogps, PackedBatch, SumOver, TokenLogps

logger = logging.getLogger(__name__)


class PolicyGradientModule(OnlineModule[GroupLoss], GroupModule):
    """Trains a policy on groups of its own answers by their rewards: GRPO, Dr. GRPO, DAPO, RLOO, GSPO, REINFORCE.

    Between epochs the policy answers and a judge gives the rewards (:class:`OnPolicySampling`). A round that is used
    for one optimizer step needs no log-probs of the policy that sampled it, since that is the policy itself. Where it
    is used for more, they are computed once, before the first of them, and kept on disk like a reference's.

    Logs what :class:`OnlineModule` logs and, for each global step, ``loss``, ``rewards`` (mean over answers),
    ``reward_spread`` (standard deviation within a group, mean over groups), ``groups_with_signal`` (share whose rewards
    differ), ``logps``, ``lengths``, with a reference ``kl``, ``ratio`` and ``clip/low``, ``clip/high`` (shares of
    tokens), and ``staleness``: optimizer steps since the answers were sampled.

    Args:
        policy: How to build the policy; a string is short for ``PolicySpec(path=...)``.
        loss: The objective; None for :class:`GRPOLoss`.
        reference: What the KL penalty compares the policy with; None for a :class:`CachedReference` of the model that
            the stage starts from, or for nothing where ``beta`` is 0.
        **kwargs: Further arguments of :class:`OnlineModule` and :class:`GroupModule`; the default learning rate is
            1e-6.

    Raises:
        ValueError: If the loss needs a reference and gets none.
    """

    takes = "groups"
    own_answers = True
    default_learning_rate = 1e-6
    typical_answers = 8
    loss: PolicyGradientLoss

    def __init__(
        self,
        policy: PolicySpec | str | dict[str, Any],
        *,
        loss: PolicyGradientLoss | None = None,
        reference: Reference | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy=policy, loss=loss or GRPOLoss(), reference=reference, **kwargs)
        self.old = OldPolicy()
        self._round: int | None = None  # the round that is trained on
        self._round_step = 0  # optimizer steps when it began
        self._uses_old = False

    @override
    def require_data(self, data: Any) -> None:
        super().require_data(data)
        if getattr(data, "validation", None) or getattr(data, "sources", None):
            raise MisconfigurationException(
                f"{type(self).__name__} learns from the policy's own answers alone: remove data.validation and "
                "data.sources; monitor_prompts of OnPolicySampling compare the rounds"
            )

    @override
    def configure_model(self) -> None:
        super().configure_model()
        self.old.attach(self.policy_model, self.build)

    @override
    def compared_with(self, batch: PackedBatch) -> list[TokenLogps]:
        others = super().compared_with(batch)
        return [*others, self.old(batch, self.policy_model)] if self._uses_old else others

    @override
    def on_train_epoch_start(self) -> None:
        """Note the policy that sampled the round, and compute its log-probs where they will be needed."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.round_number != self._round:
            self._round, self._round_step = data.round_number, self.global_step
            self.old.become(self.policy_model)
            steps = epoch_steps(self.trainer)
            self._uses_old = steps > 1 or data.is_used_again(self.current_epoch)
            if not self._uses_old:
                logger.info("round %d is used for one step: no log-probs of the policy that sampled it", self._round)
        super().on_train_epoch_start()

    @override
    def _precompute_epoch(self) -> None:
        super()._precompute_epoch()
        if self._uses_old:
            batches, ranks = epoch_batches(self.trainer), Ranks.of(self.trainer.strategy)
            self.old.precompute(batches, self.policy_model, ranks, f"the policy of round {self._round}")

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.log("train/staleness", float(self.global_step - self._round_step), batch_size=1)

    @override
    def group_metrics(
        self, policy: AnswerLogps, reference: AnswerLogps, values: Tensor, old: AnswerLogps | None = None
    ) -> dict[str, Tensor | SumOver]:
        answers = torch.full((), values.numel(), device=values.device)
        groups = torch.full((), len(values), device=values.device)
        metrics: dict[str, Tensor | SumOver] = {
            "rewards": SumOver(values.sum(), answers),
            "reward_spread": SumOver(values.std(-1, correction=0).sum(), groups),
            "groups_with_signal": SumOver((values.amax(-1) > values.amin(-1)).sum(), groups),
            "logps": SumOver(policy.sums.sum(), answers),
            "lengths": SumOver(policy.counts.sum(), answers),
            **self.loss.metrics(policy, reference, values, old),
        }
        if not isinstance(self.reference, NoReference):
            metrics["kl"] = SumOver((policy.sums - reference.sums).sum(), answers)
        return metrics

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep which policy sampled the round, and since when it is trained on."""
        super().on_save_checkpoint(checkpoint)
        old = {"round": self._round, "step": self._round_step, "used": self._uses_old, **self.old.identity()}
        checkpoint["lion"]["old"] = old

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        old = checkpoint.get("lion", {}).get("old", {})
        self._round, self._round_step = old.get("round"), old.get("step", 0)
        self._uses_old = old.get("used", False)
        self.old.restore(old)
