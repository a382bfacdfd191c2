"""Log-probs of targets without a full logits tensor, and views of them by answer and pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils.rnn import pad_sequence

from lion_lightning.ops.chunked_logprobs import HeadLogps, LogitTransform, VocabularyPart
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
    entropy: bool = False,
    logits_per_tile: int | None = None,
    logits_kept: int | None = None,
) -> TokenLogps:
    """Log-probability of each target, from the hidden state that predicts it.

    The head is applied to a part of the vocabulary at a time, so that a ``[targets, vocabulary]`` tensor never exists.
    The backward pass applies it again, but for the parts whose logits the budget allowed to keep. Products run in the
    dtype of ``hidden`` (or of autocast); the softmax is always fp32.

    Args:
        hidden: ``(targets, hidden)`` last hidden states.
        weight: ``(vocabulary, hidden)`` weight of the output head; a DTensor where ranks share it, each with some of
            its rows, which must then all call this with the same states.
        targets: ``(targets,)`` int64 token ids.
        bias: ``(vocabulary,)`` bias of the head, if it has one.
        transform: What the model does to its logits; None for nothing.
        entropy: Whether to give the entropy, too.
        logits_per_tile: How many logits may exist at once; None for ``LOGITS_PER_TILE`` of the device.
        logits_kept: How many the backward pass may find as the forward left them; None for ``LOGITS_KEPT``.
    """
    per_tile = logits_per_tile or LOGITS_PER_TILE.get(hidden.device.type, LOGITS_PER_TILE["cuda"])
    keep = LOGITS_KEPT if logits_kept is None else logits_kept
    if not (torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)):
        keep = 0
    part = None
    if isinstance(weight, DTensor):
        part = vocabulary_part(weight)
        weight, bias = weight.to_local(), bias.to_local() if isinstance(bias, DTensor) else bias
    apply: Any = HeadLogps.apply
    transform = transform or LogitTransform()
    states, ids = torch.split(hidden, TARGETS_AT_ONCE), torch.split(targets, TARGETS_AT_ONCE)
    keep //= len(ids)  # of each part
    parts = []
    for hidden_part, targets_part in zip(states, ids, strict=True):
        parts.append(apply(hidden_part, weight, bias, targets_part, transform, per_tile, keep, entropy, part))
    values, *others = (None if fields[0] is None else torch.cat(fields) for fields in zip(*parts, strict=True))
    assert values is not None
    return TokenLogps(values, *others)


def vocabulary_part(weight: DTensor) -> VocabularyPart | None:
    """This rank's part of a head; None where each rank has all of it."""
    mesh = weight.device_mesh
    (placement,) = weight.placements
    if placement.is_replicate():
        return None
    return VocabularyPart(mesh.get_group(), mesh.get_local_rank() * (weight.shape[0] // mesh.size()))


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
    bounds = batch.target_bounds()
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


class GroupView(NamedTuple):
    """Targets of the answers to some of a batch's prompts, those that have the same number of answers.

    Attributes:
        answers: Of the answers, in the shape ``(groups, n)``.
        values: ``(groups, n)`` fp32 value of each answer.
    """

    answers: AnswerView
    values: Tensor

    def logps(self, logps: TokenLogps) -> AnswerLogps:
        """Log-probs of these answers.

        Args:
            logps: One entry per target of the batch.
        """
        return self.answers.logps(logps)


def group_views(batch: PackedBatch) -> list[GroupView]:
    """Views of a batch's groups, the answers of each prompt: one for each size, in ascending order.

    A batch without answers, which a rank runs that has no rows left, has one view of no groups.
    """
    groups: dict[int, list[int]] = {}  # positions of the answers, by prompt
    for position, segment in enumerate(batch.answers):
        groups.setdefault(batch.segments[segment].parent, []).append(position)
    by_size: dict[int, list[list[int]]] = {}
    for group in groups.values():
        by_size.setdefault(len(group), []).append(group)
    values, views = np.array(batch.values, np.float32), []
    for size, found in sorted(by_size.items()) or [(2, [])]:
        positions = np.array(found, np.int64).reshape(-1, size)
        on_device = torch.from_numpy(values[positions]).to(batch.targets.device, non_blocking=True)
        views.append(GroupView(answer_view(batch, positions), on_device))
    return views


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
