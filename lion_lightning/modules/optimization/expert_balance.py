"""Balance of a mixture of experts over the tokens of a global step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from lion_lightning.distributed.replicas import sum_over_replicas
from lion_lightning.models.packing.routers import Routing
from lion_lightning.types import LossOutput


class ExpertBalance:
    """Adds the load-balancing loss to micro-batches, with expert loads counted over the global step so far.

    A micro-batch alone asks for an even load of its few rows, which keeps experts from specializing. So the share of
    tokens that each expert got is summed over all ranks and over the micro-batches of the accumulation window up to
    this one (as the buffer of arXiv 2501.11873). The last micro-batch of a step sees the loads of all of it, the first
    only its own on all ranks: with accumulation the loss approximates that of the global step's tokens, without it the
    loads are exact. Mean probabilities are each micro-batch's own, over all tokens of its row. Each item (target, pair)
    carries the loss of its micro-batch, so that it is divided by the items of the global step, as the objective is.

    Args:
        coefficient: Weight of the loss, which is the mean over the model's routers.
    """

    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient
        self._counts: Tensor | None = None
        self._experts: list[int] = []

    def add(self, output: LossOutput, routings: Sequence[Routing], strategy: Strategy) -> LossOutput:
        """A micro-batch's loss with its balancing loss; every rank calls this together.

        Args:
            output: Of the objective.
            routings: What each router decided for the micro-batch.
            strategy: The trainer's.
        """
        self._experts = [routing.logits.shape[1] for routing in routings]
        counts = torch.cat([_counts(routing) for routing in routings])
        # A rank without rows repeats one without targets, to keep step with the others.
        reduced = sum_over_replicas(counts * (output.num_items > 0), strategy)
        self._counts = reduced if self._counts is None else self._counts + reduced
        losses = []
        for routing, count in zip(routings, torch.split(self._counts, self._experts), strict=True):
            fractions = count * routing.chosen.shape[1] / count.sum().clamp_min(1)
            losses.append(load_balancing_loss(routing.logits.float().softmax(-1).mean(0), fractions))
        loss = output.num_items.detach() * torch.stack(losses).mean()
        metrics = {**output.metrics, "router_aux_loss": loss.detach()}
        return replace(output, total=output.total + self.coefficient * loss, metrics=metrics)

    def end_step(self) -> Tensor:
        """The largest load of any expert in the step, in multiples of an even one; the next micro-batch starts anew."""
        assert self._counts is not None
        loads = [
            count.max() * len(count) / count.sum().clamp_min(1) for count in torch.split(self._counts, self._experts)
        ]
        self._counts = None
        return torch.stack(loads).max()


def load_balancing_loss(probabilities: Tensor, fractions: Tensor) -> Tensor:
    """Auxiliary loss of a router (Switch Transformer, arXiv 2101.03961, equations 4 to 6), without its weight.

    With ``k`` experts per token, an even load gives ``k``, and one on the same ``k`` up to the number of experts.

    Args:
        probabilities: ``(experts,)`` mean of the router's softmax over tokens; differentiable.
        fractions: ``(experts,)`` share of tokens that went to each expert, which sum to ``k``; no gradient.
    """
    return len(fractions) * (fractions * probabilities).sum()


def _counts(routing: Routing) -> Tensor:
    """Tokens that went to each expert; not by ``bincount``, which waits for the device."""
    chosen = routing.chosen.flatten()
    return torch.zeros(routing.logits.shape[1], device=chosen.device).scatter_add_(
        0, chosen.long(), torch.ones_like(chosen, dtype=torch.float32)
    )
