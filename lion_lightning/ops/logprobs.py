"""Log-probs of targets without a full logits tensor, and views of them by answer and pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
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


class AnswerView(NamedTuple):
    """Targets of some of a batch's answers, in some order and shape; made on the host, once for all models.

    Attributes:
        targets: ``(targets,)`` int64 positions of these answers' targets among the batch's.
        owners: ``(targets,)`` int64 number of the answer that each belongs to.
        counts: Number of targets of each answer, fp32, in the shape of the answers.
    """

    targets: Tensor
    owners: Tensor
    counts: Tensor

    def logps(self, logps: TokenLogps) -> AnswerLogps:
        """Log-probs of these answers.

        Args:
            logps: One entry per target of the batch.
        """
        return AnswerLogps(logps.take(self.targets), self.owners, self.counts)


def answer_view(batch: PackedBatch, answers: npt.ArrayLike) -> AnswerView:
    """View of some answers of a batch.

    Args:
        batch: Trees.
        answers: Positions among the batch's answers, in any shape; an answer may come several times.
    """
    segments = np.array(batch.answers, np.int64)[np.asarray(answers, np.int64)]
    # Targets are sorted by segment: those of segment i are bounds[i] to bounds[i + 1].
    bounds = np.searchsorted(batch.on_cpu().target_segments.numpy(), np.arange(len(batch.segments) + 1))
    starts, counts = bounds[segments].ravel(), (bounds[segments + 1] - bounds[segments]).ravel()
    owners = np.repeat(np.arange(len(counts)), counts)
    index = np.arange(len(owners)) + (starts - (np.cumsum(counts) - counts))[owners]
    parts = (index, owners, counts.reshape(segments.shape).astype(np.float32))
    return AnswerView(*(torch.from_numpy(part).to(batch.targets.device, non_blocking=True) for part in parts))


class PairView(NamedTuple):
    """Targets of both sides of a batch's pairs.

    Attributes:
        chosen: Of the preferred answers.
        rejected: Of the others.
    """

    chosen: AnswerView
    rejected: AnswerView

    def logps(self, logps: TokenLogps) -> PairLogps:
        """Log-probs of the pairs.

        Args:
            logps: One entry per target of the batch.
        """
        return PairLogps(self.chosen.logps(logps), self.rejected.logps(logps))


def pair_view(batch: PackedBatch) -> PairView:
    """View of a batch's pairs; one without targets has none: it is what a rank runs that has no rows left."""
    pairs = np.array(batch.pairs, np.int64).reshape(-1, 2)
    return PairView(answer_view(batch, pairs[:, 0]), answer_view(batch, pairs[:, 1]))


def pair_logps(logps: TokenLogps, batch: PackedBatch) -> PairLogps:
    """Log-probs of a batch's pairs, where no view is to be used again.

    Args:
        logps: One entry per target of the batch.
        batch: Trees with pairs.
    """
    return pair_view(batch).logps(logps)


def require_pairs(batch: PackedBatch) -> None:
    """Refuse a batch without pairs, or with weights of targets.

    Raises:
        ValueError: The batch holds anything but pairs, or targets have weights.
    """
    segment_parents(batch)
    if len(batch.targets) and not batch.pairs:
        raise ValueError("the batch does not hold preference pairs (answers to one prompt); use PreferenceDataModule")
    if batch.target_weights is not None:
        raise ValueError("target_weights are for documents: answers of pairs are compared by all their tokens alike")


def require_documents(batch: PackedBatch) -> None:
    """Refuse answers that share a prompt: as documents, rejected ones would be trained as well."""
    if any(parent >= 0 for parent in segment_parents(batch)):
        raise ValueError(
            "the batch holds answers that share a prompt, and SFTModule would train all of them as documents, rejected "
            "ones too; use SFTDataModule, or DPOModule for pairs"
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
