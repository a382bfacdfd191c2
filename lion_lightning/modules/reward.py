"""Reward models from preference pairs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from typing_extensions import override

from lion_lightning.models.rewards.model import RewardModel
from lion_lightning.models.rewards.spec import RewardModelSpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.modules.trainer.batch_kinds import require_pairs
from lion_lightning.modules.trainer.batches import refuse_rounds
from lion_lightning.types import LossOutput, PackedBatch

_SETTINGS = ("margin", "margin_per_score", "center_rewards_coefficient")


class RewardModule(AlignmentModule):
    """Trains a reward model on preference pairs (Bradley and Terry, 1952; for answers: arXiv 2203.02155, eq. 1).

    The loss of a pair with rewards ``r_w`` of the chosen and ``r_l`` of the rejected answer is

        -log sigmoid(r_w - r_l - m) + c (r_w + r_l)^2

    with a margin m (Llama 2, arXiv 2307.09288, eq. 2) and a term that keeps rewards around 0 (arXiv 2312.09244, TRL's
    ``center_rewards_coefficient``). The reward is that of :class:`~lion_lightning.models.rewards.model.RewardModel`: a
    prompt is computed once for all of its answers, an answer once for all of its pairs. The export is a folder that
    ``AutoModelForSequenceClassification`` and :class:`~lion_lightning.judges.RewardModelJudge` load.

    Logs, for training, validation and test, means over the pairs of the global step (or of the data set): ``loss``;
    ``rewards/accuracy``, the share of pairs with ``r_w > r_l`` (a tie counts half); ``rewards/margin``, ``r_w - r_l``;
    ``rewards/chosen`` and ``rewards/rejected``.

    Args:
        policy: The model to start from, a causal LM (which gets a new head) or a reward model; a string is short for
            ``PolicySpec(path=...)``.
        margin: Distance that the chosen answer's reward is to keep from the rejected one's; added to the next.
        margin_per_score: Margin for each unit by which the chosen answer's score is above the rejected one's; 0 for
            data without scores. With 1, the margin is the difference of the scores. A joined answer has the first of
            its scores; where that is below the rejected one's, they add nothing to the margin.
        center_rewards_coefficient: Weight c of the squared sum of both rewards; 0 for none.
        **kwargs: Further arguments of :class:`AlignmentModule`; the default learning rate is 1e-5.

    Raises:
        ValueError: A number is negative or not finite. In training, if pairs have no scores to make margins of.

    Example:
        ``Trainer(max_epochs=1).fit(RewardModule("runs/sft/export"), datamodule)``
    """

    default_learning_rate = 1e-5
    spec_class = RewardModelSpec
    items = "pairs"
    typical_answers = 2

    def __init__(
        self,
        policy: PolicySpec | str | dict[str, Any],
        *,
        margin: float = 0.0,
        margin_per_score: float = 0.0,
        center_rewards_coefficient: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy=policy, **kwargs)
        self.margin, self.margin_per_score = margin, margin_per_score
        self.center_rewards_coefficient = center_rewards_coefficient
        for name in _SETTINGS:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"model.{name} is {getattr(self, name)}; give a number of at least 0")

    @property
    @override
    def objective(self) -> str:
        settings = ", ".join(f"{name}={getattr(self, name):g}" for name in _SETTINGS)
        return f"Bradley-Terry({settings}) over {self.items}"

    @property
    def reward_model(self) -> RewardModel:
        """The model that is trained."""
        model: Any = self.policy_model
        return model  # type: ignore[no-any-return]

    @override
    def compute_loss(self, batch: PackedBatch) -> LossOutput:
        rewards = self.reward_model(batch)  # (answers,)
        pairs = torch.tensor(batch.pairs, dtype=torch.int64).reshape(-1, 2)
        chosen, rejected = rewards[pairs.to(rewards.device, non_blocking=True)].unbind(1)  # (pairs,) each
        margins = torch.tensor(self.margins(batch), dtype=torch.float32).to(rewards.device, non_blocking=True)
        losses = self.pair_losses(chosen, rejected, margins)
        with torch.no_grad():
            metrics = {
                "rewards/chosen": chosen.sum(),
                "rewards/rejected": rejected.sum(),
                "rewards/margin": (chosen - rejected).sum(),
                "rewards/accuracy": ((chosen - rejected).sign() + 1).sum() / 2,  # 1, 0, or 1/2 for a tie
            }
        return LossOutput(losses.sum(), torch.full((), len(losses), device=losses.device), metrics)

    @override
    def require_data(self, data: Any) -> None:
        """Refuse pairs that would be sampled first: a reward model writes no answers."""
        refuse_rounds(self, data)

    @override
    def require_kind(self, batch: PackedBatch) -> None:
        require_pairs(batch, self)

    def pair_losses(self, chosen: Tensor, rejected: Tensor, margins: Tensor) -> Tensor:
        """Loss of each pair, ``(pairs,)``. Override it for another one.

        Args:
            chosen: ``(pairs,)`` rewards of the preferred answers.
            rejected: ``(pairs,)`` rewards of the others.
            margins: ``(pairs,)`` from :meth:`margins`.
        """
        return -logsigmoid(chosen - rejected - margins) + self.center_rewards_coefficient * (chosen + rejected) ** 2

    def margins(self, batch: PackedBatch) -> list[float]:
        """Margin of each pair of a batch.

        Raises:
            ValueError: It depends on scores, and a pair has none.
        """
        if not self.margin_per_score:
            return [self.margin] * len(batch.pairs)
        differences = [batch.values[chosen] - batch.values[rejected] for chosen, rejected in batch.pairs]
        if any(map(math.isnan, differences)):
            raise ValueError(
                "model.margin_per_score: answers of a pair have no scores to make a margin of; give the rows scores "
                "(score_chosen and score_rejected, or scores of ranked answers), or set it to 0"
            )
        return [self.margin + self.margin_per_score * max(difference, 0.0) for difference in differences]
