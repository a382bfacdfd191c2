"""Answers and pairs whose log-probs are chosen, so that a loss can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lion_lightning.types import AnswerLogps, PairLogps, TokenLogps

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)  # sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4
HALF_NAT = math.log(4 / 3)  # -log sigmoid(ln 3)


def answers(
    sums: Sequence[float] | Tensor,
    counts: Sequence[float] | None = None,
    shared: Sequence[float] | Tensor | None = None,
    log_collision_prob: Sequence[float] | None = None,
    shared_counts: Sequence[float] | None = None,
) -> AnswerLogps:
    """One side in fp64; one token an answer unless said otherwise.

    Args:
        sums: Log-prob of each answer, in equal parts over its tokens.
        counts: Tokens of each answer.
        shared: Sum over the first ``shared_counts`` tokens of each; the rest is the tail's.
        log_collision_prob: Sum of each answer's, in equal parts.
        shared_counts: Tokens of each answer's first part.
    """
    totals = torch.as_tensor(sums, dtype=torch.float64)
    lengths = torch.ones_like(totals) if counts is None else torch.tensor(counts, dtype=torch.float64)
    firsts = lengths if shared_counts is None else torch.tensor(shared_counts, dtype=torch.float64)
    heads = totals if shared is None else torch.as_tensor(shared, dtype=torch.float64)
    drawn = torch.zeros_like(totals) if log_collision_prob is None else torch.tensor(log_collision_prob).double()
    owners = torch.arange(len(totals)).repeat_interleave(lengths.long())
    places = torch.cat([torch.empty(0), *(torch.arange(length) for length in lengths.long().tolist())])
    tails = (totals - heads) / (lengths - firsts).clamp_min(1)
    tokens = torch.where(places < firsts[owners], (heads / firsts)[owners], tails[owners])
    return AnswerLogps(TokenLogps(tokens, None, (drawn / lengths)[owners]), owners, lengths)


def zeros(pairs: PairLogps) -> PairLogps:
    """What stands for a reference where there is none."""
    return PairLogps(*(with_tokens(side, torch.zeros_like(side.tokens.values)) for side in pairs))


def with_tokens(side: AnswerLogps, values: Tensor) -> AnswerLogps:
    """The same answers with other log-probs of their tokens."""
    return replace(side, tokens=side.tokens._replace(values=values))


def with_ratios(chosen: Sequence[float], rejected: Sequence[float]) -> tuple[PairLogps, PairLogps]:
    """Policy and reference whose log-ratios these are, over a reference that differs from answer to answer."""
    base = [torch.arange(len(side), dtype=torch.float64) - shift for side, shift in ((chosen, 7.0), (rejected, 9.0))]
    own = [
        start + torch.tensor(side, dtype=torch.float64) for start, side in zip(base, (chosen, rejected), strict=True)
    ]
    return PairLogps(*map(answers, own)), PairLogps(*map(answers, base))


def answers_with_ratios(ratios: Sequence[float]) -> tuple[AnswerLogps, AnswerLogps]:
    """Policy and reference of answers of a token each whose log-ratios these are."""
    policy, reference = with_ratios(ratios, [])
    return policy.chosen, reference.chosen


def groups_with_ratios(ratios: Sequence[Sequence[float]]) -> tuple[AnswerLogps, AnswerLogps]:
    """The same for groups of equal size, one after the other."""
    flat = [ratio for group in ratios for ratio in group]
    policy, reference = answers_with_ratios(flat)
    return in_groups(policy, len(ratios)), in_groups(reference, len(ratios))


def in_groups(flat: AnswerLogps, groups: int) -> AnswerLogps:
    """The same answers as groups of equal size."""
    return replace(flat, counts=flat.counts.reshape(groups, -1))


def groups_of(tokens: Sequence[Sequence[Sequence[float]]]) -> AnswerLogps:
    """Groups of equal size by the log-prob of each token of each of their answers, in fp64."""
    counts = torch.tensor([[len(answer) for answer in group] for group in tokens])
    values = [value for group in tokens for answer in group for value in answer]
    owners = torch.arange(counts.numel()).repeat_interleave(counts.reshape(-1))
    return AnswerLogps(TokenLogps(torch.tensor(values, dtype=torch.float64)), owners, counts.double())


def random_answers(number: int = 6, seed: int = 0) -> tuple[AnswerLogps, AnswerLogps]:
    """Policy and reference of answers of 1 to 12 tokens."""
    policy, reference = random_pairs(number, seed)
    return policy.chosen, reference.chosen


def random_pairs(number: int = 5, seed: int = 0) -> tuple[PairLogps, PairLogps]:
    """Policy and reference of answers of 1 to 12 tokens, with everything that any loss reads, in fp64."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 13, (2, number), generator=generator).double()

    def side(own: Tensor) -> AnswerLogps:
        owners = torch.arange(number).repeat_interleave(own.long())
        tokens, drawn = (-0.2 - 2 * torch.rand(2, len(owners), generator=generator, dtype=torch.float64)).unbind()
        return AnswerLogps(TokenLogps(tokens, None, drawn), owners, own)

    policy, reference = ([side(own) for own in counts] for _ in range(2))
    return PairLogps(*policy), PairLogps(*reference)


def empty_pairs() -> tuple[PairLogps, PairLogps]:
    """No pairs at all, as a rank has them that is out of rows."""
    policy, reference = with_ratios([], [])
    return policy, reference
