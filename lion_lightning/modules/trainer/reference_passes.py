"""Passes of a reference over a Trainer's batches, before they are needed."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Trainer

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.policy import PolicyModel
from lion_lightning.modules.trainer.batches import CheckedBatches, epoch_batches, evaluation_batches, train_batches
from lion_lightning.references.base import Reference
from lion_lightning.types import PackedBatch


def precompute_training(
    reference: Reference, policy: PolicyModel, trainer: Trainer, check: Callable[[PackedBatch], None]
) -> None:
    """Precompute a reference on all answers that train, where those are known before training.

    Args:
        reference: The reference, attached to the policy.
        policy: The policy as it is now.
        trainer: The trainer, its data set up.
        check: Raises an error about a batch of another kind: before hours of work, not after.
    """
    batches = CheckedBatches(train_batches(trainer), check)
    reference.precompute(batches, policy, Ranks.of(trainer.strategy), "training")


def precompute_epoch(reference: Reference, policy: PolicyModel, trainer: Trainer, title: str) -> None:
    """Precompute a reference on the answers of the present epoch, where those are known when it begins."""
    reference.precompute(epoch_batches(trainer), policy, Ranks.of(trainer.strategy), title)


def precompute_evaluation(reference: Reference, policy: PolicyModel, trainer: Trainer) -> None:
    """Precompute a reference on the answers that validate, or test where the trainer tests."""
    ranks = Ranks.of(trainer.strategy)
    for number, batches in enumerate(evaluation_batches(trainer)):
        reference.precompute(batches, policy, ranks, f"evaluation {number}" if number else "evaluation")
