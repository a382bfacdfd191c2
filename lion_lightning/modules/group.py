"""Training on groups: all answers to a prompt, with their values."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lion_lightning.losses.groups.group import GroupLoss, differences
from lion_lightning.losses.groups.listwise import PlackettLuceLoss
from lion_lightning.models.spec import PolicySpec
from lion_lightning.modules.policy_reference import PolicyReferenceModule
from lion_lightning.modules.trainer.batch_kinds import require_groups
from lion_lightning.ops.logprobs import group_views
from lion_lightning.references.base import NoReference, Reference
from lion_lightning.types import AnswerLogps, LossOutput, PackedBatch, SumOver, TokenLogps


class GroupModule(PolicyReferenceModule[GroupLoss]):
    """Trains a policy on prompts with several answers each, by a loss over all of them.

    Each answer is computed once, the prompt once for all of them. The items are prompts.

    Logs, for training, validation and test, as means over the prompts of the global step (or of the data set):
    ``loss`` and ``group_size``. As means over answers: ``values``, ``logps`` in nats per answer, ``lengths`` in targets
    and, with a reference, ``kl``, the log-ratio of policy to reference, in nats. Over all pairs of answers to a prompt
    with different values: ``rewards/accuracy``, the share in which the better one has the higher reward, as the loss
    defines rewards (equal rewards count half), and ``rewards/margin``, by how much. Over the prompts that have such
    pairs: ``rewards/kendall``, the rank correlation of rewards and values (Kendall's tau of the pairs that the values
    order: 1 for the same order, -1 for the opposite one).

    Args:
        policy: How to build the policy; a string is short for ``PolicySpec(path=...)``.
        loss: Loss per prompt; None for :class:`PlackettLuceLoss`.
        reference: What the policy is compared with; None for a :class:`CachedReference` of the model that the stage
            starts from, or for nothing where the loss needs nothing.
        **kwargs: Further arguments of :class:`PolicyReferenceModule`; the default learning rate is 5e-7.

    Raises:
        ValueError: If the loss needs a reference and gets none.

    Example:
        ``Trainer(max_steps=100).fit(GroupModule("runs/sft/export"), datamodule)``
    """

    items = "prompts"
    typical_answers = 4
    own_answers: ClassVar[bool] = False
    """True if answers have to be the very tokens that the policy has drawn, from its own distribution."""

    def __init__(
        self,
        policy: PolicySpec | str | dict[str, Any],
        *,
        loss: GroupLoss | None = None,
        reference: Reference | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy=policy, loss=loss or PlackettLuceLoss(), reference=reference, **kwargs)
        if self.loss.on_policy and not self.own_answers:
            raise ValueError(
                f"model.loss: {type(self.loss).__name__} learns from the policy's own answers, and "
                f"{type(self).__name__} trains on those of others; use lion_lightning.PolicyGradientModule"
            )

    @override
    def compute_loss(self, batch: PackedBatch) -> LossOutput:
        others = self.compared_with(batch)
        own = self.policy_logps(batch)
        losses, items, metrics = [], [], []
        for view in group_views(batch):  # one for each size of group
            policy, (reference, *more) = view.logps(own), map(view.logps, others)
            losses.append(self.loss(policy, reference, view.values, *more).sum())
            items.append(self.loss.num_items(policy))
            with torch.no_grad():
                metrics.append(self.group_metrics(policy, reference, view.values, *more))
        return LossOutput(torch.stack(losses).sum(), torch.stack(items).sum(), _added(metrics))

    def policy_logps(self, batch: PackedBatch) -> TokenLogps:
        """Log-probs of the batch's targets under the policy, with what is logged of its distributions."""
        logps: TokenLogps = self.policy_model(batch)
        return logps

    def compared_with(self, batch: PackedBatch) -> list[TokenLogps]:
        """Log-probs of the batch's targets under what the policy is compared with, in the order of the loss."""
        return [self.reference_logps(batch)]

    @override
    def require_kind(self, batch: PackedBatch) -> None:
        require_groups(batch, self)
        self.loss.check_values(batch.values)

    def group_metrics(self, policy: AnswerLogps, reference: AnswerLogps, values: Tensor) -> dict[str, Tensor | SumOver]:
        """Sums over groups of equal size of what is logged, by log key. Override it to log more.

        Args:
            policy: Log-probs under the policy, ``(groups, n)``.
            reference: The same under the reference.
            values: ``(groups, n)``.
        """
        better = differences(values) > 0  # (groups, n, n)
        margins = differences(self.loss.rewards(policy, reference))
        orders, pairs = margins.sign() * better, better.sum((1, 2))  # 1 where reward and value agree, -1 where not
        answers = torch.full((), values.numel(), device=values.device)
        metrics: dict[str, Tensor | SumOver] = {
            "rewards/accuracy": SumOver((orders.sum() + better.sum()) / 2, better.sum()),
            "rewards/margin": SumOver((margins * better).sum(), better.sum()),
            "rewards/kendall": SumOver((orders.sum((1, 2)) / pairs.clamp_min(1)).sum(), (pairs > 0).sum()),
            "logps": SumOver(policy.sums.sum(), answers),
            "lengths": SumOver(policy.counts.sum(), answers),
            "values": SumOver(values.sum(), answers),
            "group_size": SumOver(answers, torch.full((), len(values), device=values.device)),
        }
        if not isinstance(self.reference, NoReference):
            metrics["log_ratio"] = SumOver((policy.sums - reference.sums).sum(), answers)
        return metrics


def _added(parts: list[dict[str, Tensor | SumOver]]) -> dict[str, Tensor | SumOver]:
    """Metrics of several sizes of groups, added up."""
    sums = parts[0]
    for part in parts[1:]:
        for name, metric in part.items():
            known = sums[name]
            if isinstance(metric, SumOver) and isinstance(known, SumOver):
                sums[name] = SumOver(known.total + metric.total, known.number + metric.number)
            elif isinstance(metric, Tensor) and isinstance(known, Tensor):
                sums[name] = known + metric
    return sums
