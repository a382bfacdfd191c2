"""Pure tensor functions: log-probs of targets without a whole logits tensor, and sums over segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pad_sequence

from lion_lightning.types import AnswerLogps, PackedBatch, PairLogps, TokenLogps

LOGITS_PER_CHUNK = 2**24
"""Logits that exist at once (64 MiB in fp32). Larger chunks cost memory and gain no speed."""


class LogitTransform(NamedTuple):
    """What some models do to the head's output: ``softcap * tanh(scale * x / softcap)`` (Gemma 2, Cohere, Granite).

    Attributes:
        scale: Factor on the raw logits.
        softcap: Bound of the soft clipping, or None for none.
    """

    scale: float = 1.0
    softcap: float | None = None

    def apply(self, logits: Tensor) -> Tensor:
        """Transformed logits; may overwrite its argument."""
        if self.scale != 1.0:
            logits = logits.mul_(self.scale)
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def backward(self, gradient: Tensor, transformed: Tensor) -> Tensor:
        """Gradient for the raw logits, from that for the transformed ones; may overwrite its arguments."""
        if self.softcap is not None:
            gradient = gradient.mul_(1 - transformed.div(self.softcap).square_())
        return gradient.mul_(self.scale) if self.scale != 1.0 else gradient


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    transform: LogitTransform | None = None,
    logits_per_chunk: int = LOGITS_PER_CHUNK,
) -> TokenLogps:
    """Log-probability of each target, from the hidden state that predicts it.

    The head is applied to a few rows at a time and again in the backward pass, so that a ``[targets, vocabulary]``
    tensor exists in neither. Products run in the dtype of ``hidden`` (or of autocast); the softmax is always fp32.

    Args:
        hidden: ``(targets, hidden)`` last hidden states.
        weight: ``(vocabulary, hidden)`` weight of the output head.
        targets: ``(targets,)`` int64 token ids.
        bias: ``(vocabulary,)`` bias of the head, if it has one.
        transform: What the model does to its logits; None for nothing.
        logits_per_chunk: How many logits may exist at once.
    """
    chunk = max(1, logits_per_chunk // weight.shape[0])
    apply: Any = _HeadLogps.apply
    return TokenLogps(*apply(hidden, weight, bias, targets, transform or LogitTransform(), chunk))


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
        logps: One entry a target of the batch.
        batch: Samples of three segments: prompt, chosen, rejected. One without targets holds no pairs: it is what a
            rank runs that has no rows left.
    """
    chosen, rejected = (places.to(batch.targets.device) for places in _sides(batch))
    owners, segments = batch.target_segments, len(batch.segments)
    counts = torch.bincount(owners, minlength=segments)
    shorter = torch.zeros_like(counts)
    shorter[chosen] = shorter[rejected] = torch.minimum(counts[chosen], counts[rejected])
    nth = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners]  # of its segment
    per_token = (
        logps.values,
        torch.ones_like(logps.values),
        logps.values * (nth < shorter[owners]),
        logps.collisions,
    )
    totals = [segment_sums(values, owners, segments) for values in per_token]
    return PairLogps(*(AnswerLogps(*(total[side] for total in totals)) for side in (chosen, rejected)))


def pair_segments(batch: PackedBatch) -> list[tuple[int, int, int]]:
    """Indices of each pair's segments: prompt, chosen, rejected.

    Args:
        batch: Samples of three segments. One without targets holds no pairs: it is what a rank runs that has no rows.

    Raises:
        ValueError: If the batch holds anything but pairs.
    """
    parents = [segment.parent for segment in batch.segments]
    roots = range(0, len(parents), 3)
    if parents != [parent for root in roots for parent in (-1, root, root)]:
        raise ValueError(
            "the batch does not hold preference pairs (prompt, chosen, rejected); use PreferenceDataModule"
        )
    return [(root, root + 1, root + 2) for root in roots] if len(batch.targets) else []


def _sides(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    pairs = torch.tensor(pair_segments(batch), dtype=torch.int64).reshape(-1, 3)
    return pairs[:, 1], pairs[:, 2]


class _Head(NamedTuple):
    """The output head in the dtype that products run in."""

    weight: Tensor
    bias: Tensor | None
    transform: LogitTransform

    def logits(self, hidden: Tensor) -> Tensor:
        """Transformed fp32 logits, ``(rows, vocabulary)``."""
        with torch.autocast(hidden.device.type, enabled=False):
            logits = (hidden.to(self.weight.dtype) @ self.weight.T).float()
        return self.transform.apply(logits if self.bias is None else logits.add_(self.bias.float()))

    def logits_gradient(self, hidden: Tensor, targets: Tensor, normaliser: Tensor, gradient: Tensor) -> Tensor:
        """Gradient of the raw logits: (onehot(target) - softmax) times the incoming gradient of the values."""
        logits = self.logits(hidden)
        result = (logits - normaliser[:, None]).exp_().neg_()
        result[torch.arange(len(targets), device=targets.device), targets] += 1
        return self.transform.backward(result.mul_(gradient[:, None]), logits)


class _HeadLogps(torch.autograd.Function):
    """log softmax(transform(hidden @ weight.T + bias))[target], chunked and recomputed."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.transform, ctx.chunk, ctx.dtype = transform, chunk, _compute_dtype(hidden)
        head = _Head(weight.to(ctx.dtype), bias, transform)
        values = hidden.new_empty(len(targets), dtype=torch.float32)
        normaliser, collisions = torch.empty_like(values), torch.empty_like(values)
        hits = torch.empty_like(values, dtype=torch.bool)
        for rows in _chunks(len(targets), chunk):
            logits = head.logits(hidden[rows])
            target = logits.gather(1, targets[rows, None]).squeeze(1)
            largest = logits.amax(1)
            weights = logits.sub_(largest[:, None]).exp_()
            total = weights.sum(1)
            normaliser[rows] = total.log().add_(largest)
            values[rows] = target - normaliser[rows]
            collisions[rows] = torch.linalg.vector_norm(weights, dim=1).div_(total).log_().mul_(2)
            hits[rows] = target >= largest
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        ctx.mark_non_differentiable(hits, collisions)
        return values, hits, collisions

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        head = _Head(weight.to(ctx.dtype), bias, ctx.transform)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        # fp32 even for bf16 weights: many chunks add up here.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        for rows in _chunks(len(targets), ctx.chunk):
            grad_logits = head.logits_gradient(hidden[rows], targets[rows], normaliser[rows], gradient[rows])
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(ctx.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (grad_logits @ head.weight).to(hidden.dtype)
            if grad_weight is not None:
                _accumulate_outer(grad_weight, grad_logits, hidden[rows].to(ctx.dtype))
        return grad_hidden, _cast(grad_weight, weight), _cast(grad_bias, bias), None, None, None


def _chunks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _accumulate_outer(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left.T @ right`` to ``total``, without a temporary of its size where the dtypes allow."""
    if total.dtype == left.dtype:
        total.addmm_(left.T, right)
    else:
        total += left.T @ right


def _cast(gradient: Tensor | None, like: Tensor | None) -> Tensor | None:
    return None if gradient is None or like is None else gradient.to(like.dtype)


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
    """Go through an iterator to its end, also where its reader stops early or fails.

    Tensors that come out of it may be gathered from all ranks one by one, and the others would wait for this one.

    Args:
        items: Left at its end.
    """
    try:
        yield items
    finally:
        for _ in items:
            pass
