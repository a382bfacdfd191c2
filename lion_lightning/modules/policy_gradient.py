"""Policy gradients: the policy answers, a judge rewards, and better answers of a group become more probable."""

from __future__ import annotations

import logging
from functools import partial
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
from lion_lightning.models.policy import PolicyModel
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
    tokens), ``entropy`` (of the policy, mean over tokens), and ``staleness``: optimizer steps since the answers were
    sampled.

    Args:
        policy: How to build the policy; a string is short for ``PolicySpec(path=...)``.
        loss: The objective; None for :class:`GRPOLoss`.
        reference: What the KL penalty compares the policy with; None for a :class:`CachedReference` of the model that
            the stage starts from, or for nothing where ``beta`` is 0.
        **kwargs: Further arguments of :class:`OnlineModule` and :class:`GroupModule`; the default learning rate is
            1e-6.

    Raises:
        ValueError: If the loss is not a policy gradient, or needs a reference and gets none.
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
        if loss is not None and not isinstance(loss, PolicyGradientLoss):
            raise ValueError(
                f"model.loss: {type(loss).__name__} is not a policy gradient; use OnlineGroupModule, or a subclass of "
                "lion_lightning.losses.PolicyGradientLoss"
            )
        super().__init__(policy=policy, loss=loss or GRPOLoss(), reference=reference, **kwargs)
        self.old = OldPolicy()
        self._round: int | None = None  # the round that is trained on
        self._round_step = 0  # optimizer steps when it was sampled
        self._steps_before = 0  # optimizer steps on it in earlier epochs
        self._told: bool | None = None

    @override
    def require_data(self, data: Any) -> None:
        super().require_data(data)
        given = [name for name in ("validation", "sources") if getattr(data, name, None)]
        if given:
            raise MisconfigurationException(
                f"{type(self).__name__} learns from answers that its policy has just sampled, and has no loss of "
                f"others: remove data.{' and data.'.join(given)}; monitor_prompts of OnPolicySampling compare the "
                "rounds, and `lion evaluate` models"
            )

    @override
    def configure_model(self) -> None:
        super().configure_model()
        self.old.attach(self.policy_model, self.build)

    @override
    def policy_logps(self, batch: PackedBatch) -> TokenLogps:
        logps: TokenLogps = self.policy_model(batch, partial(PolicyModel.logps, entropy=True))
        return logps

    @override
    def compared_with(self, batch: PackedBatch) -> list[TokenLogps]:
        others = super().compared_with(batch)
        return [*others, self.old(batch, self.policy_model)] if self.old.weights else others

    @override
    def on_train_start(self) -> None:
        if self.trainer.fit_loop.restarted_mid_epoch:  # an epoch that starts no more, but may end in here
            self._log_steps()
        super().on_train_start()

    @override
    def on_train_epoch_start(self) -> None:
        """Note when the round was sampled, and compute the log-probs of its policy where they are needed."""
        if self.is_skipped:
            return
        if self._data.current_round.number != self._round:
            self._round, self._round_step = self._data.current_round.number, self.global_step
            self.old.begin(None)
        self._steps_before = self.global_step - self._round_step
        super().on_train_epoch_start()
        self._log_steps()

    @override
    def _precompute_epoch(self) -> None:
        super()._precompute_epoch()
        if self._data.current_round.number == self._round:  # else it begins yet, after a checkpoint of an epoch's end
            self._precompute_old()

    def _precompute_old(self) -> None:
        again = self._data.is_used_again(self.current_epoch)
        several = again or self._steps_at_end > 1
        self._tell(several)
        if not several and self.old.weights is None:
            return
        self.old.rounds_dir = self._data.current_round.path.parent
        if self.global_step == self._round_step:  # otherwise a checkpoint knows its weights
            self.old.begin(self.policy_model)
        # Of a limited epoch, the next one trains on other answers, which are not known by then.
        batches, ranks = epoch_batches(self.trainer, limited=not again), Ranks.of(self.trainer.strategy)
        self.old.precompute(batches, self.policy_model, ranks, f"round {self._round}")

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def _steps_at_end(self) -> int:
        """Optimizer steps that the round has been used for when the epoch ends, if the run does not end before."""
        return self._steps_before + int(epoch_steps(self.trainer))

    def _log_steps(self) -> None:
        steps, most = self._steps_at_end, self.trainer.max_steps
        if most >= 0:
            steps = min(steps, most - self._round_step)
        self.log("on_policy/steps_per_round", float(steps), on_step=False, on_epoch=True, batch_size=1)

    def _tell(self, several: bool) -> None:
        """Say what a round is used for, once until that changes."""
        if several == self._told:
            return
        self._told = several
        if not several:
            logger.info("each round is used for one optimizer step: nothing is kept of the policy that sampled it")
        elif self.loss.clip_low is None:
            logger.warning(
                "each round is used for several optimizer steps, and %s does not clip the ratio to the policy that "
                "sampled it: set model.loss.clip_low, or trainer.accumulate_grad_batches so that it is one step",
                type(self.loss).__name__,
            )

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
        spread = (values - values.mean(-1, keepdim=True)).square().mean(-1).sqrt()  # std() warns of no groups
        metrics: dict[str, Tensor | SumOver] = {
            "rewards": SumOver(values.sum(), answers),
            "reward_spread": SumOver(spread.sum(), groups),
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
        checkpoint["lion"]["old"] = {
            "round": self._round,
            "step": self._round_step,
            "steps_before": self._steps_before,
            **self.old.identity(),
        }

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        old = checkpoint.get("lion", {}).get("old", {})
        self._round, self._round_step = old.get("round"), old.get("step", 0)
        self._steps_before = old.get("steps_before", 0)
        self.old.restore(old)
