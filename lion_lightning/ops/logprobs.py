"""Log-probs of targets without a full logits tensor, and their sums over segments and pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lion_lightning.ops.chunked_logprobs import HeadLogps, LogitTransform
from lion_lightning.types import AnswerLogps, PackedBatch, PairLogps, TokenLogps

LOGITS_PER_TILE = {"cpu": 2**20, "cuda": 2**26}
"""Logits that exist at once, by kind of device: what the caches of a CPU hold, and what keeps a GPU busy."""

LOGITS_KEPT = 2**25
"""Logits (128 MiB) saved for the backward pass, which recomputes the rest. They are most of a small model's step, and
negligible next to the activations of a large one."""

TARGETS_AT_ONCE = 2**14
"""Most targets of one call; more would make the tiles of a CPU too narrow to be fast."""


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    transform: LogitTransform | None = None,
    logits_per_tile: int | None = None,
    logits_kept: int | None = None,
) -> TokenLogps:
    """Log-probability of each target, from the hidden state that predicts it.

    The head is applied to a part of the vocabulary at a time, so that a ``[targets, vocabulary]`` tensor never exists.
    The backward pass applies it again, but for the parts whose logits the budget allowed to keep. Products run in the
    dtype of ``hidden`` (or of autocast); the softmax is always fp32.

    Args:
        hidden: ``(targets, hidden)`` last hidden states.
        weight: ``(vocabulary, hidden)`` weight of the output head.
        targets: ``(targets,)`` int64 token ids.
        bias: ``(vocabulary,)`` bias of the head, if it has one.
        transform: What the model does to its logits; None for nothing.
        logits_per_tile: How many logits may exist at once; None for ``LOGITS_PER_TILE`` of the device.
        logits_kept: How many the backward pass may find as the forward left them; None for ``LOGITS_KEPT``.
    """
    per_tile = logits_per_tile or LOGITS_PER_TILE.get(hidden.device.type, LOGITS_PER_TILE["cuda"])
    keep = LOGITS_KEPT if logits_kept is None else logits_kept
    if not (torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)):
        keep = 0
    apply: Any = HeadLogps.apply
    transform = transform or LogitTransform()
    states, ids = torch.split(hidden, TARGETS_AT_ONCE), torch.split(targets, TARGETS_AT_ONCE)
    keep //= len(ids)  # of each part
    parts = []
    for hidden_part, targets_part in zip(states, ids, strict=True):
        parts.append(apply(hidden_part, weight, bias, targets_part, transform, per_tile, keep))
    return TokenLogps(*map(torch.cat, zip(*parts, strict=True)))


def segment_sums(values: Tensor, target_segments: Tensor, segments: int) -> Tensor:
    """Sum per-token values over the segments that they belong to: ``(segments,)``.

    Args:
        values: ``(targets,)`` values.
        target_segments: ``(targets,)`` segment of each.
        segments: Number of segments.
    """
    return values.new_zeros(segments).index_add(0, target_segments, values)


def pair_logps(logps: TokenLogps, batch: PackedBatch) -> PairLogps:
    """Reduce the log-probs of a batch of preference pairs to what losses consume.

    Args:
        logps: One entry per target of the batch.
        batch: Samples of three segments: prompt, chosen, rejected. One without targets holds no pairs: it is what a
            rank runs that has no rows left.
    """
    pairs = torch.tensor(pair_segments(batch), dtype=torch.int64).reshape(-1, 3)
    chosen = pairs[:, 1].to(batch.targets.device, non_blocking=True)  # (pairs,) indices of segments
    rejected = pairs[:, 2].to(batch.targets.device, non_blocking=True)
    owners, segments = batch.target_segments, len(batch.segments)  # (targets,) segment of each
    counts = segment_sums(torch.ones_like(owners), owners, segments)  # bincount would wait for the device
    # LD-DPO: the sum over as many tokens of each answer as the shorter one of its pair has.
    shorter = torch.zeros_like(counts)
    shorter[chosen] = shorter[rejected] = torch.minimum(counts[chosen], counts[rejected])
    nth = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners]  # of its segment
    shared = logps.values * (nth < shorter[owners])
    per_token = (logps.values, torch.ones_like(logps.values), shared, logps.log_collision_prob)
    sums = [segment_sums(values, owners, segments) for values in per_token]  # (segments,) each
    answers = [AnswerLogps(*(each[places] for each in sums)) for places in (chosen, rejected)]
    return PairLogps(*answers)


def pair_segments(batch: PackedBatch) -> list[tuple[int, int, int]]:
    """Indices of each pair's segments: prompt, chosen, rejected.

    Args:
        batch: Samples of three segments. One without targets holds no pairs: it is what a rank runs that has no rows.

    Raises:
        ValueError: The batch holds anything but pairs, or targets have weights.
    """
    parents = segment_parents(batch)
    roots = range(0, len(parents), 3)
    for root in roots:
        if parents[root : root + 3] != [-1, root, root]:
            raise ValueError(
                "the batch does not hold preference pairs (prompt, chosen, rejected); use PreferenceDataModule"
            )
    if batch.target_weights is not None:
        raise ValueError("target_weights are for documents: answers of pairs are compared by all their tokens alike")
    return [(root, root + 1, root + 2) for root in roots] if len(batch.targets) else []


def require_documents(batch: PackedBatch) -> None:
    """Refuse answers that share a prompt: as documents, rejected ones would be trained as well."""
    if any(parent >= 0 for parent in segment_parents(batch)):
        raise ValueError(
            "the batch holds preference pairs (prompt, chosen, rejected), and SFTModule would train both answers as "
            "documents; use SFTDataModule, or DPOModule for pairs"
        )


def segment_parents(batch: PackedBatch) -> list[int]:
    """Index of the parent of each segment of a batch, -1 for none."""
    if not isinstance(batch, PackedBatch):
        raise ValueError(
            f"the data gives batches of type {type(batch).__name__}, and the modules of lion_lightning train on "
            "PackedBatch: use a data module of lion_lightning, or make batches with lion_lightning.data.packing.collate"
        )
    return [segment.parent for segment in batch.segments]


def pad_left(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of unequal length as one int64 tensor ``(rows, longest)``, padded at their start.

    Args:
        rows: Token ids, or a mask.
        value: What to pad with.
    """
    tensors = [torch.tensor(row) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side="left")


@contextmanager
def to_the_end(items: Iterator[Any]) -> Iterator[Iterator[Any]]:
    """Exhaust an iterator, also where its reader stops early or fails.

    Its tensors may be gathered from all ranks one by one: the others would wait for this one forever.
    """
    try:
        yield items
    finally:
        for _ in items:
            pass
