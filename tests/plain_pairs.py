"""DPO as plainly as it can be written: prompt+chosen and prompt+rejected as rows of a right-padded batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence

from lion_lightning.types import Sample, SampleSegment
from tests.tiny import VOCABULARY

PAIRS = ((6, 5, 9), (4, 1, 7), (3, 8, 8))
"""Tokens of prompt, chosen and rejected: unequal answers, an answer of one token, equal ones."""
HOLES = {(0, 2): (2, 3, 4), (2, 1): (0, 4), (2, 2): (7,)}
"""Unsupervised places by (pair, piece): a user's turn within an answer, an answer's first token, its last one."""


def pair_samples(
    lengths: Sequence[tuple[int, int, int]] = PAIRS,
    holes: dict[tuple[int, int], tuple[int, ...]] | None = None,
    seed: int = 0,
) -> list[Sample]:
    """Preference pairs of random tokens; nothing of a prompt is supervised, all of an answer but its holes is.

    Args:
        lengths: Tokens of prompt, chosen and rejected of each pair.
        holes: Unsupervised places of answers by (pair, piece); None for :data:`HOLES`.
        seed: Of the tokens.
    """
    draw = np.random.default_rng(seed)

    def piece(pair: int, place: int, length: int) -> SampleSegment:
        supervised = np.full(length, place > 0)
        supervised[list((HOLES if holes is None else holes).get((pair, place), ()))] = False
        return SampleSegment(draw.integers(3, VOCABULARY, length).astype(np.int32), supervised, 0 if place else -1)

    samples = []
    for number, pair in enumerate(lengths):
        pieces = tuple(piece(number, place, length) for place, length in enumerate(pair))
        samples.append(Sample(pieces, number, values=(1.0, 0.0), pairs=((0, 1),)))
    return samples


def padded_sides(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and supervision, each ``(2 * pairs, longest)``: chosen rows, then rejected rows."""
    rows = [(sample.segments[0], sample.segments[side]) for side in (1, 2) for sample in samples]
    ids = [torch.from_numpy(np.concatenate([piece.input_ids for piece in row]).astype(np.int64)) for row in rows]
    supervised = [torch.from_numpy(np.concatenate([piece.supervised for piece in row])) for row in rows]
    return (
        pad_sequence(ids, batch_first=True),
        pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        pad_sequence(supervised, batch_first=True),
    )


def plain_token_logps(model: Any, ids: Tensor, attended: Tensor) -> Tensor:
    """Log-probs of all tokens but the first of each row, ``(rows, length - 1)``, from whole logits.

    Args:
        model: A causal LM of transformers, or a PEFT model around one.
        ids: ``(rows, length)``.
        attended: The attention mask, of the same shape.
    """
    logits = model(input_ids=ids, attention_mask=attended, use_cache=False).logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logps: Tensor = logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    return logps


def plain_logps(model: Any, samples: Sequence[Sample]) -> Tensor:
    """Log-probs of the answers, ``(2, pairs)``: chosen, rejected."""
    ids, attended, supervised = padded_sides(samples)
    return (plain_token_logps(model, ids, attended) * supervised[:, 1:]).sum(1).reshape(2, -1)


def plain_logps_one_by_one(model: Any, samples: Sequence[Sample]) -> Tensor:
    """:func:`plain_logps` with every row alone: no padding, whose rows are NaN in fp64 under a sliding window."""
    rows = []
    for ids, attended, supervised in zip(*padded_sides(samples), strict=True):
        n = int(attended.sum())
        rows.append((plain_token_logps(model, ids[None, :n], attended[None, :n]) * supervised[None, 1:n]).sum())
    return torch.stack(rows).reshape(2, -1)


def plain_dpo(
    model: Any,
    reference: Any,
    samples: Sequence[Sample],
    logps: Callable[[Any, Sequence[Sample]], Tensor] = plain_logps,
) -> Tensor:
    """Mean DPO loss of the pairs at a beta of 0.1 (arXiv 2305.18290, eq. 7)."""
    with torch.no_grad():
        expected = logps(reference, samples)
    ratios = logps(model, samples) - expected
    return -logsigmoid(0.1 * (ratios[0] - ratios[1])).mean()
