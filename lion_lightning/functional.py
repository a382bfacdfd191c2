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

LOGITS_PER_TILE = {"cpu": 2**22, "cuda": 2**26}
"""Logits that exist at once, by kind of device: what the caches of a CPU hold, and what keeps a GPU busy."""

TARGETS_AT_ONCE = 2**14
"""More of them make the tiles of a CPU too narrow to be fast, and are taken in parts."""


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
    logits_per_tile: int | None = None,
) -> TokenLogps:
    """Log-probability of each target, from the hidden state that predicts it.

    The head is applied to a part of the vocabulary at a time and again in the backward pass, so that a ``[targets,
    vocabulary]`` tensor exists in neither. Products run in the dtype of ``hidden`` (or of autocast); the softmax is
    always fp32.

    Args:
        hidden: ``(targets, hidden)`` last hidden states.
        weight: ``(vocabulary, hidden)`` weight of the output head.
        targets: ``(targets,)`` int64 token ids.
        bias: ``(vocabulary,)`` bias of the head, if it has one.
        transform: What the model does to its logits; None for nothing.
        logits_per_tile: How many logits may exist at once; None for ``LOGITS_PER_TILE`` of the device.
    """
    per_tile = logits_per_tile or tile_size(hidden.device)
    apply: Any = _HeadLogps.apply
    parts = [
        apply(states, weight, bias, ids, transform or LogitTransform(), per_tile)
        for states, ids in zip(*(torch.split(part, TARGETS_AT_ONCE) for part in (hidden, targets)), strict=True)
    ]
    return TokenLogps(*map(torch.cat, zip(*parts, strict=True)))


def tile_size(device: torch.device) -> int:
    """How many logits exist at once on a device, unless :func:`token_logps` is told another number."""
    return LOGITS_PER_TILE.get(device.type, LOGITS_PER_TILE["cuda"])


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
    """The output head, a tile of its vocabulary at a time, in the dtype that products run in."""

    weight: Tensor
    bias: Tensor | None
    transform: LogitTransform
    dtype: torch.dtype

    def part(self, columns: slice) -> _Head:
        """The head of some tokens of the vocabulary."""
        bias = None if self.bias is None else self.bias[columns]
        return self._replace(weight=self.weight[columns].to(self.dtype), bias=bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """Transformed fp32 logits, ``(rows, vocabulary)``."""
        with torch.autocast(hidden.device.type, enabled=False):
            logits = (hidden @ self.weight.T).float()
        return self.transform.apply(logits if self.bias is None else logits.add_(self.bias.float()))

    def logits_gradient(self, hidden: Tensor, local: Tensor, normaliser: Tensor, gradient: Tensor) -> Tensor:
        """Gradient of the raw logits: (onehot(target) - softmax) times the incoming gradient of the values."""
        logits = self.logits(hidden)
        kept = logits.clone() if self.transform.softcap is not None else logits  # all that still needs them
        result = logits.sub_(normaliser[:, None]).exp_().mul_(-gradient[:, None])
        place, inside = _place(local, result.shape[1])
        result.scatter_add_(1, place, (gradient * inside)[:, None])
        return self.transform.backward(result, kept)


class _Running:
    """Softmax statistics of rows of logits that come a tile of the vocabulary at a time."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.largest = torch.full((rows,), -torch.inf, device=device)
        self.target, self.total, self.squares = torch.zeros(3, rows, device=device)

    def add(self, logits: Tensor, local: Tensor) -> None:
        """Take in a tile, which is overwritten; ``local`` are the targets counted from its first column."""
        place, inside = _place(local, logits.shape[1])
        self.target = torch.where(inside, logits.gather(1, place).squeeze(1), self.target)
        largest = torch.maximum(self.largest, logits.amax(1))
        weights, shrink = logits.sub_(largest[:, None]).exp_(), (self.largest - largest).exp()
        self.total.mul_(shrink).add_(weights.sum(1))
        self.squares.mul_(shrink.square()).add_(torch.linalg.vector_norm(weights, dim=1).square())
        self.largest = largest


class _HeadLogps(torch.autograd.Function):
    """log softmax(transform(hidden @ weight.T + bias))[target], in tiles, computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        per_tile: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.dtype, ctx.per_tile, ctx.transform = _compute_dtype(hidden), per_tile, transform
        head = _Head(weight, bias, transform, ctx.dtype)
        found = _Running(len(targets), hidden.device)
        states = hidden.to(ctx.dtype)
        for columns in _tiles(len(targets), len(weight), per_tile):
            found.add(head.part(columns).logits(states), targets - columns.start)
        normaliser = found.total.log().add_(found.largest)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        values, hits = found.target - normaliser, found.target >= found.largest
        collisions = found.squares.log() - 2 * found.total.log()
        ctx.mark_non_differentiable(hits, collisions)
        return values, hits, collisions

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        head = _Head(weight, bias, ctx.transform, ctx.dtype)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        states = hidden.to(ctx.dtype)
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if needs_hidden else None
        grad_weight = torch.empty_like(weight) if needs_weight else None
        grad_bias = torch.empty_like(bias) if needs_bias else None
        for columns in _tiles(len(targets), len(weight), ctx.per_tile):
            part = head.part(columns)
            raw = part.logits_gradient(states, targets - columns.start, normaliser, gradient)
            if grad_bias is not None:
                grad_bias[columns] = raw.sum(0)
            raw = raw.to(ctx.dtype)
            if grad_hidden is not None:
                _accumulate_product(grad_hidden, raw, part.weight)
            if grad_weight is not None:
                grad_weight[columns] = raw.T @ states
        return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight, grad_bias, None, None, None


def _tiles(rows: int, vocabulary: int, per_tile: int) -> Iterator[slice]:
    width = max(1, per_tile // max(1, rows))
    return (slice(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width))


def _place(local: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Columns ``(rows, 1)`` of targets in a tile, and which rows have theirs in it: the others' are any."""
    return local.clamp(0, width - 1)[:, None], (local >= 0) & (local < width)


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _accumulate_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to an fp32 ``total``."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


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
