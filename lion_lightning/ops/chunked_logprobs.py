"""The output head and log-softmax in tiles of the vocabulary: a ``[targets, vocabulary]`` tensor never exists.

With z the logits of a row, m their maximum so far and g the gradient of the row's value, the forward pass does for each
tile:

1. z = transform(hidden @ weight.T + bias), in fp32;
2. pick the logit of the target, if its column is in this tile;
3. raise m, and with it rescale and extend the sums of exp(z - m) and of exp(z - m)^2 (online softmax); where the
   entropy is asked for, that of exp(z - m) (z - m), too.

Ranks that hold a part of the vocabulary each merge their m, sums and target logits then, as tiles are. After that,
log p(target) = z_target - normalizer, with normalizer = m + log sum exp(z - m), and the entropy is
log sum exp(z - m) - sum exp(z - m) (z - m) / sum exp(z - m). The backward pass does for each tile:

4. compute z again, or take exp(z - m) of a tile that was saved: the first ones are, as far as a budget allows;
5. dz = (onehot(target) - exp(z - normalizer)) * g, then through the transform;
6. dhidden += dz @ weight, dweight = dz.T @ hidden, dbias = sum(dz).

At the end dhidden is summed over these ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
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
        if self.softcap is not None:  # d(c tanh(x / c)) / dx = 1 - tanh^2
            gradient = gradient.mul_(1 - transformed.div(self.softcap).square_())
        return gradient.mul_(self.scale) if self.scale != 1.0 else gradient


class VocabularyPart(NamedTuple):
    """The part of a head that this rank holds, where it is split over the vocabulary.

    Attributes:
        group: Ranks that hold the parts, and run the same rows.
        first: First token of this rank's part.
    """

    group: dist.ProcessGroup
    first: int


class _RunningSums(NamedTuple):
    """Sums over the columns so far, ``(rows,)`` each, of exp(z - m), its square, and exp(z - m) (z - m)."""

    total: Tensor
    squares: Tensor
    weighted: Tensor | None

    def rescale_(self, rise: Tensor) -> None:
        """Give all sums another m; ``rise`` is the old one minus the new one."""
        shrink = rise.exp()  # what the sums so far are worth under the new maximum
        if self.weighted is not None:
            self.weighted.add_(rise * self.total).mul_(shrink)
        self.total.mul_(shrink)
        self.squares.mul_(shrink.square())

    def merge_(self, largest: Tensor, target_logits: Tensor, group: dist.ProcessGroup) -> Tensor:
        """Merge the sums and target logits (0 of tokens that others hold) of a group of ranks in place; their new m."""
        merged = largest.clone()  # a saved tile keeps its own
        dist.all_reduce(merged, dist.ReduceOp.MAX, group)
        self.rescale_(largest - merged)
        for values in (target_logits, *self):
            if values is not None:
                dist.all_reduce(values, dist.ReduceOp.SUM, group)
        return merged


class TiledHead:
    """The output head over some hidden states, in tiles of the vocabulary, in the dtype of its products.

    All tiles share one buffer for their logits: a CPU would spend as long on the page faults of new memory.
    """

    def __init__(
        self, states: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform, per_tile: int
    ) -> None:
        self.states, self.weight, self.bias, self.transform = states, weight, bias, transform
        width = max(1, per_tile // max(1, len(states)))
        # CPU matrix products are slower with rows that are not aligned.
        self.width = width - width % 64 if width > 64 else width
        self._buffer = states.new_empty(len(states) * min(self.width, len(weight)))

    def tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """Columns of each tile, and its weight ``(width, hidden)``."""
        for start in range(0, len(self.weight), self.width):
            columns = slice(start, min(start + self.width, len(self.weight)))
            yield columns, self.weight[columns].to(self.states.dtype)

    def buffer(self, width: int) -> Tensor:
        """Memory for ``(rows, width)`` values, the same for every tile."""
        return self._buffer[: len(self.states) * width].view(len(self.states), width)

    def logits(self, columns: slice, weight: Tensor, out: Tensor) -> Tensor:
        """Transformed fp32 logits ``(rows, width)`` of a tile, in ``out`` if that is fp32."""
        with torch.autocast(self.states.device.type, enabled=False):
            logits = torch.mm(self.states, weight.T, out=out).float()
        if self.bias is not None:
            logits = logits.add_(self.bias[columns].float())
        return self.transform.apply(logits)


class HeadLogps(torch.autograd.Function):
    """log softmax(transform(hidden @ weight.T + bias))[target], in tiles; the module's docstring has the steps."""

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
        with_entropy: bool,
        part: VocabularyPart | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The fields of :class:`~lion_lightning.types.TokenLogps`."""
        kind, rows = hidden.device.type, len(targets)
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        ctx.per_tile, ctx.transform, ctx.part = per_tile, transform, part
        targets = targets if part is None else targets - part.first  # outside of the weight's rows where others hold it
        head = TiledHead(hidden.to(ctx.dtype), weight, bias, transform, per_tile)
        fp32: Any = {
            "dtype": torch.float32,
            "device": hidden.device,
        }  # whatever the default dtype is (bf16-true sets it)
        largest = torch.full((rows,), torch.finfo(torch.float32).min, **fp32)
        target_logits, total, squares, weighted = torch.zeros(4, rows, **fp32)  # (rows,) each
        sums = _RunningSums(total, squares, weighted if with_entropy else None)
        saved: list[Tensor] = []
        for columns, tile_weight in head.tiles():
            save = rows * columns.stop <= keep and transform.softcap is None
            buffer = head.buffer(len(tile_weight))
            logits = head.logits(columns, tile_weight, torch.empty_like(buffer) if save else buffer)  # (rows, width)
            local, inside = _columns(targets - columns.start, len(tile_weight))
            target_logits = torch.where(inside, logits.gather(1, local).squeeze(1), target_logits)
            before, largest = largest, torch.maximum(largest, logits.amax(1))
            sums.rescale_(before - largest)
            exponentials = logits.sub_(largest[:, None])
            if with_entropy:
                weighted.add_(_exp_(exponentials, per_tile // 16))
            else:
                exponentials.exp_()
            total.add_(exponentials.sum(1))
            squares.add_(torch.linalg.vector_norm(exponentials, dim=1).square())
            if save:
                saved += exponentials, largest
        if part is not None:
            largest = sums.merge_(largest, target_logits, part.group)
        normalizer = total.log().add_(largest)  # (rows,) logsumexp
        ctx.save_for_backward(hidden, weight, bias, targets, normalizer, *saved)
        top1_correct = target_logits >= largest
        log_collision_prob = squares.log() - 2 * total.log()  # log sum_v p(v)^2
        entropy = total.log() - weighted / total if with_entropy else None
        ctx.mark_non_differentiable(top1_correct, log_collision_prob, *([] if entropy is None else [entropy]))
        return target_logits - normalizer, top1_correct, log_collision_prob, entropy

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, weight and bias, where needed."""
        hidden, weight, bias, targets, normalizer, *saved = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if needs_hidden else None
        grad_weight = torch.empty_like(weight) if needs_weight else None
        grad_bias = torch.empty_like(bias) if needs_bias else None
        head = TiledHead(hidden.to(ctx.dtype), weight, bias, ctx.transform, ctx.per_tile)
        saved_tiles = zip(saved[::2], saved[1::2], strict=True)
        for columns, tile_weight in head.tiles():
            exponentials, largest = next(saved_tiles, (None, None))
            buffer = head.buffer(len(tile_weight))
            if exponentials is None:
                logits = head.logits(columns, tile_weight, buffer)  # (rows, width)
                # The soft clipping's derivative needs the logits, which the next line overwrites.
                transformed = logits if ctx.transform.softcap is None else logits.clone()
                raw = logits.sub_(normalizer[:, None]).exp_().mul_(-gradient[:, None])  # -softmax * g
            else:
                factor = (largest - normalizer).exp_().mul_(-gradient)[:, None]
                out = buffer if buffer.dtype == exponentials.dtype else None
                raw = transformed = torch.mul(exponentials, factor, out=out)
            local, inside = _columns(targets - columns.start, len(tile_weight))
            raw = raw.scatter_add_(1, local, (gradient * inside)[:, None])  # + onehot(target) * g
            raw = ctx.transform.backward(raw, transformed)
            if grad_bias is not None:
                grad_bias[columns] = raw.sum(0)
            raw = raw.to(ctx.dtype)
            if grad_hidden is not None:
                _accumulate_product(grad_hidden, raw, tile_weight)
            if grad_weight is not None:
                _write_product(grad_weight[columns], raw.T, head.states)
        if grad_hidden is not None and ctx.part is not None:
            dist.all_reduce(grad_hidden, dist.ReduceOp.SUM, ctx.part.group)
        grad_hidden = None if grad_hidden is None else grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, grad_bias, *[None] * 6


def _columns(local: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Columns ``(rows, 1)`` of the targets in a tile, and a mask ``(rows,)`` of those whose target is in it."""
    return local.clamp(0, width - 1)[:, None], (local >= 0) & (local < width)


def _exp_(numbers: Tensor, at_once: int) -> Tensor:
    """Replace numbers ``(rows, width)`` by their exponentials; the sums ``(rows,)`` of these times the numbers.

    Both exist for a few rows at a time, in the caches.
    """
    sums, lowest = [], torch.finfo(numbers.dtype).min
    for part in torch.split(numbers, max(1, at_once // numbers.shape[1])):
        exponentials = part.clamp_min_(lowest).exp()  # a token that a bias of -inf forbids adds 0, and no 0 * inf
        sums.append(part.mul_(exponentials).sum(1))
        part.copy_(exponentials)
    return torch.cat(sums)


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
