"""Pairs whose log-probs are chosen, so that a loss can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lion_lightning.types import AnswerLogps, PairLogps

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)  # sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4
HALF_NAT = math.log(4 / 3)  # -log sigmoid(ln 3)


def answers(
    sums: Sequence[float] | Tensor,
    counts: Sequence[float] | None = None,
    shared: Sequence[float] | Tensor | None = None,
    log_collision_prob: Sequence[float] | None = None,
) -> AnswerLogps:
    """One side in fp64; one token an answer and all of it shared unless said otherwise."""
    values = torch.as_tensor(sums, dtype=torch.float64)
    return AnswerLogps(
        values,
        torch.ones_like(values) if counts is None else torch.tensor(counts, dtype=torch.float64),
        values if shared is None else torch.as_tensor(shared, dtype=torch.float64),
        torch.zeros_like(values)
        if log_collision_prob is None
        else torch.tensor(log_collision_prob, dtype=torch.float64),
    )


def with_ratios(chosen: Sequence[float], rejected: Sequence[float]) -> tuple[PairLogps, PairLogps]:
    """Policy and reference whose log-ratios these are, over a reference that differs from answer to answer."""
    base = [torch.arange(len(side), dtype=torch.float64) - shift for side, shift in ((chosen, 7.0), (rejected, 9.0))]
    own = [
        start + torch.tensor(side, dtype=torch.float64) for start, side in zip(base, (chosen, rejected), strict=True)
    ]
    return PairLogps(*map(answers, own)), PairLogps(*map(answers, base))


def random_pairs(number: int = 5, seed: int = 0) -> tuple[PairLogps, PairLogps]:
    """Policy and reference of answers of 1 to 12 tokens, with everything that any loss reads, in fp64."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 13, (2, number), generator=generator).double()
    shared_counts = counts.amin(0)

    def side(own: Tensor) -> AnswerLogps:
        means, tails = (-0.2 - 2 * torch.rand(2, number, generator=generator, dtype=torch.float64)).unbind()
        log_collision_prob = -own * torch.rand(number, generator=generator, dtype=torch.float64)
        shared = means * shared_counts
        return AnswerLogps(shared + tails * (own - shared_counts), own, shared, log_collision_prob)

    policy, reference = ([side(own) for own in counts] for _ in range(2))
    return PairLogps(*policy), PairLogps(*reference)


def empty_pairs() -> tuple[PairLogps, PairLogps]:
    """No pairs at all, as a rank has them that is out of rows."""
    policy, reference = with_ratios([], [])
    return policy, reference
