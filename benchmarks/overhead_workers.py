"""A hand-written training loop to compare the modules with, a worker of ``interleaved``.

    python overhead_workers.py JOB


It is what one would write without Lightning for this batch size, with the library's own forward and losses: read the
batch, forward, loss, backward, divide the gradients by the step's items, their norm, AdamW. Nothing is logged.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from batches import steps_of
from interleaved import Turns
from torch import Tensor
from training_workers import BETA, LEARNING_RATE, loader, quiet

from lion_lightning import PolicySpec
from lion_lightning.losses import NLLLoss, SigmoidLoss
from lion_lightning.models.policy import PolicyModel
from lion_lightning.ops.logprobs import pair_logps
from lion_lightning.types import PackedBatch, PairLogps

Loss = Callable[[PackedBatch], tuple[Tensor, int]]
"""Total loss of a batch, and its items."""


def sft_loss(policy: PolicyModel) -> Loss:
    """Loss of supervised fine-tuning.

    Args:
        policy: What trains.
    """
    loss = NLLLoss()

    def total(batch: PackedBatch) -> tuple[Tensor, int]:
        return loss(policy(batch).values).sum(), len(batch.targets)

    return total


def dpo_loss(policy: PolicyModel, batches: Sequence[PackedBatch]) -> Loss:
    """Loss of DPO; the policy's log-probs of this moment are the reference, computed here for all batches.

    Args:
        policy: What trains.
        batches: All that it trains on, in their order.
    """
    loss = SigmoidLoss(BETA)
    with torch.no_grad():
        known: Iterator[PairLogps] = iter([pair_logps(policy(batch), batch) for batch in batches])

    def total(batch: PackedBatch) -> tuple[Tensor, int]:
        losses = loss(pair_logps(policy(batch), batch), next(known))
        return losses.sum(), len(losses)

    return total


def train(policy: PolicyModel, loss: Loss, batches: Any, precision: str = "32-true") -> Iterator[float]:
    """Take a step a batch; gives the mean loss of each.

    Args:
        policy: Changed in place.
        loss: Of a batch.
        batches: What to train on.
        precision: ``32-true`` or ``bf16-mixed``.
    """
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            total, items = loss(batch)
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad.mul_(1 / items) for parameter in policy.parameters() if parameter.grad is not None]
        torch.nn.utils.get_total_norm(gradients)  # the module logs it
        optimizer.step()
        yield float(total) / items


def main(job: dict[str, Any]) -> None:
    """Train on a job's steps, one a turn.

    Args:
        job: As ``training_workers`` has it.
    """
    quiet()
    policy = PolicySpec(path=job["model"]).build().train()
    batches = loader(steps_of(job))
    with torch.autocast("cpu", torch.bfloat16, enabled=job["precision"] == "bf16-mixed"):
        loss = sft_loss(policy) if job["stage"] == "sft" else dpo_loss(policy, list(batches))
    turns = Turns()
    turns.start()
    for value in train(policy, loss, batches, job["precision"]):
        turns.end(losses=[value])


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    main(json.loads(sys.argv[1]))
