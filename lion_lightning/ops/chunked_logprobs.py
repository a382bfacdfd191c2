"""The output head and log-softmax in tiles of the vocabulary: a ``[targets, vocabulary]`` tensor never exists.

The backward pass recomputes the logits, except those of the first tiles, which are saved as far as a budget allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override


class LogitTransform(NamedTuple):
    """Transform of a head's logits: ``softcap * tanh(scale * x / softcap)`` (Gemma 2, Cohere, Granite).

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
        """Gradient of the raw logits from that of the transformed ones; may overwrite its arguments."""
        if self.softcap is not None:
            gradient = gradient.mul_(1 - transformed.div(self.softcap).square_())
        return gradient.mul_(self.scale) if self.scale != 1.0 else gradient


def tile_width(rows: int, per_tile: int) -> int:
    """Width of a tile of the vocabulary whose ``(rows, width)`` logits fit ``per_tile``.

    A multiple of 64 where there are as many: CPU matrix products are slower with unaligned rows.
    """
    width = max(1, per_tile // max(1, rows))
    return width - width % 64 if width > 64 else width


class Exponentials(NamedTuple):
    """What is saved of a tile for the backward pass: the softmax up to a factor per row.

    Attributes:
        values: ``exp(logits - largest)``, ``(rows, tokens of the tile)``.
        largest: ``(rows,)``, the largest logit of this tile and those before it.
    """

    values: Tensor
    largest: Tensor


class _Head(NamedTuple):
    """The output head, or a tile of it, in the dtype of its products.

    All tiles share one buffer for their products: a CPU would spend as long on the page faults of new memory.
    """

    weight: Tensor
    bias: Tensor | None
    transform: LogitTransform
    buffer: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, transform: LogitTransform, states: Tensor, per_tile: int) -> _Head:
        """The head for these hidden states, with a buffer for the products of a tile."""
        size = len(states) * min(tile_width(len(states), per_tile), len(weight))
        return cls(weight, bias, transform, states.new_empty(size))

    def tile(self, columns: slice) -> _Head:
        """The head of a slice of the vocabulary."""
        bias = None if self.bias is None else self.bias[columns]
        return self._replace(weight=self.weight[columns].to(self.buffer.dtype), bias=bias)

    def logits(self, hidden: Tensor, keep: bool = False) -> Tensor:
        """Transformed fp32 logits ``(rows, width)`` of this tile; the next tile overwrites them unless ``keep``."""
        buffer = self._buffer(len(hidden))
        with torch.autocast(hidden.device.type, enabled=False):
            logits = torch.mm(hidden, self.weight.T, out=torch.empty_like(buffer) if keep else buffer).float()
        return self.transform.apply(logits if self.bias is None else logits.add_(self.bias.float()))

    def logits_gradient(self, hidden: Tensor, local: Tensor, normalizer: Tensor, gradient: Tensor) -> Tensor:
        """Gradient of the raw logits: (onehot(target) - softmax) times the incoming gradient of the values."""
        logits = self.logits(hidden)
        kept = (
            logits.clone() if self.transform.softcap is not None else logits
        )  # its backward reads them after they are overwritten
        result = logits.sub_(normalizer[:, None]).exp_().mul_(-gradient[:, None])
        return self.transform.backward(_add_at(local, result, gradient), kept)

    def kept_gradient(self, kept: Exponentials, local: Tensor, normalizer: Tensor, gradient: Tensor) -> Tensor:
        """The same from a saved tile, of a head without soft clipping."""
        factor = (kept.largest - normalizer).exp_().mul_(-gradient)[:, None]
        buffer = self._buffer(len(local)) if self.buffer.dtype == kept.values.dtype else None
        result = torch.mul(kept.values, factor, out=buffer)
        return self.transform.backward(_add_at(local, result, gradient), result)

    def _buffer(self, rows: int) -> Tensor:
        return self.buffer[: rows * len(self.weight)].view(rows, len(self.weight))


class _OnlineSoftmax:
    """Softmax statistics of rows of logits, updated by one tile of the vocabulary after the other."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.largest = torch.full((rows,), -torch.inf, device=device)
        self.target, self.total, self.squares = torch.zeros(3, rows, device=device)

    def add(self, logits: Tensor, local: Tensor) -> None:
        """Update by a tile, which is overwritten; ``local`` are the targets counted from its first column."""
        columns, inside = _columns(local, logits.shape[1])
        self.target = torch.where(inside, logits.gather(1, columns).squeeze(1), self.target)
        largest = torch.maximum(self.largest, logits.amax(1))
        weights, shrink = logits.sub_(largest[:, None]).exp_(), (self.largest - largest).exp()
        self.total.mul_(shrink).add_(weights.sum(1))
        self.squares.mul_(shrink.square()).add_(torch.linalg.vector_norm(weights, dim=1).square())
        self.largest = largest


class HeadLogps(torch.autograd.Function):
    """log softmax(transform(hidden @ weight.T + bias))[target], in tiles."""

    @staticmethod
    @override
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        per_tile: int,
        keep: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values, top1_correct and log_collision_prob, as :class:`~lion_lightning.types.TokenLogps` has them."""
        ctx.dtype, ctx.per_tile, ctx.transform = _compute_dtype(hidden), per_tile, transform
        found, kept = _OnlineSoftmax(len(targets), hidden.device), list[Tensor]()
        states = hidden.to(ctx.dtype)
        head = _Head.of(weight, bias, transform, states, per_tile)
        for columns in _tiles(len(targets), len(weight), per_tile):
            fits = len(targets) * columns.stop <= keep and transform.softcap is None
            logits = head.tile(columns).logits(states, fits)
            found.add(logits, targets - columns.start)
            kept += Exponentials(logits, found.largest) if fits else ()
        # logsumexp of each row (targets,); log p(target) = logit - logsumexp
        normalizer = found.total.log().add_(found.largest)
        ctx.save_for_backward(hidden, weight, bias, targets, normalizer, *kept)
        values, top1_correct = found.target - normalizer, found.target >= found.largest
        log_collision_prob = found.squares.log() - 2 * found.total.log()
        ctx.mark_non_differentiable(top1_correct, log_collision_prob)
        return values, top1_correct, log_collision_prob

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, weight and bias, where needed."""
        hidden, weight, bias, targets, normalizer, *kept = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        states, tiles = hidden.to(ctx.dtype), map(Exponentials, kept[::2], kept[1::2])
        head = _Head.of(weight, bias, ctx.transform, states, ctx.per_tile)
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if needs_hidden else None
        grad_weight = torch.empty_like(weight) if needs_weight else None
        grad_bias = torch.empty_like(bias) if needs_bias else None
        for columns in _tiles(len(targets), len(weight), ctx.per_tile):
            tile, saved = head.tile(columns), next(tiles, None)
            known = (targets - columns.start, normalizer, gradient)
            raw = tile.logits_gradient(states, *known) if saved is None else tile.kept_gradient(saved, *known)
            if grad_bias is not None:
                grad_bias[columns] = raw.sum(0)
            raw = raw.to(ctx.dtype)
            if grad_hidden is not None:
                _accumulate_product(grad_hidden, raw, tile.weight)
            if grad_weight is not None:
                _write_product(grad_weight[columns], raw.T, states)
        grad_hidden = None if grad_hidden is None else grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _tiles(rows: int, vocabulary: int, per_tile: int) -> Iterator[slice]:
    width = tile_width(rows, per_tile)
    return (slice(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width))


def _columns(local: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Columns ``(rows, 1)`` of the targets in a tile, and a mask of the rows whose target is in it."""
    return local.clamp(0, width - 1)[:, None], (local >= 0) & (local < width)


def _add_at(local: Tensor, tile: Tensor, values: Tensor) -> Tensor:
    """Add one value per row, in place, at the column of its target, where that is in the tile."""
    columns, inside = _columns(local, tile.shape[1])
    return tile.scatter_add_(1, columns, (values * inside)[:, None])


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _write_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Write ``left @ right`` to ``out``, without a copy where the dtypes are the same."""
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(left @ right)


def _accumulate_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to an fp32 ``total``."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
