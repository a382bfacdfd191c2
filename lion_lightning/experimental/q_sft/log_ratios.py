"""How much more probable one model makes a token than another at most, without a ``[rows, vocabulary]`` tensor."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lion_lightning.ops.chunked_logprobs import LogitTransform, TiledHead
from lion_lightning.ops.logprobs import LOGITS_PER_TILE


class Head(NamedTuple):
    """The output head of a model over some hidden states.

    Attributes:
        states: ``(rows, hidden)`` last hidden states.
        weight: ``(vocabulary, hidden)`` weight of the head.
        bias: ``(vocabulary,)`` its bias, if it has one.
        transform: What the model does to its logits.
    """

    states: Tensor
    weight: Tensor
    bias: Tensor | None = None
    transform: LogitTransform = LogitTransform()

    def tiled(self, per_tile: int) -> TiledHead:
        """The head in tiles of the vocabulary, in the dtype of its products."""
        kind = self.states.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.states.dtype
        return TiledHead(self.states.to(dtype), self.weight, self.bias, self.transform, per_tile)


@torch.no_grad()
def max_log_ratio(numerator: Head, denominator: Head, floor: float, logits_per_tile: int | None = None) -> Tensor:
    r"""``(rows,)`` fp32 :math:`\max_v \log p(v) - \log q(v)` over the tokens v with :math:`q(v) \geq` ``floor``.

    Where no token has that much, the most probable one under q counts alone.

    Args:
        numerator: Of p.
        denominator: Of q, over as many rows and tokens.
        floor: Least probability under q. Without one, the maximum would find tokens that q has never seen: their ratio
            is of two numbers near 0.
        logits_per_tile: How many logits of each may exist at once; None for what suits the device.
    """
    per_tile = logits_per_tile or LOGITS_PER_TILE.get(denominator.states.device.type, LOGITS_PER_TILE["cuda"])
    above, below = numerator.tiled(per_tile), denominator.tiled(per_tile)
    normalizers = _normalizers(below)  # of q alone: that of p shifts all of a row's ratios alike
    lowest = torch.full_like(normalizers, -math.inf)
    best, likeliest, instead = lowest, lowest, lowest
    for (columns, weight), (_, other) in zip(above.tiles(), below.tiles(), strict=True):
        log_q = below.logits(columns, other, below.buffer(len(other))) - normalizers[:, None]  # (rows, width)
        ratios = above.logits(columns, weight, above.buffer(len(weight))) - log_q
        best = torch.maximum(best, ratios.masked_fill(log_q < math.log(floor), -math.inf).amax(1))
        top, column = log_q.max(1)
        instead = torch.where(top > likeliest, ratios.gather(1, column[:, None]).squeeze(1), instead)
        likeliest = torch.maximum(likeliest, top)
    return torch.where(best > -math.inf, best, instead) - _normalizers(above)


def _normalizers(head: TiledHead) -> Tensor:
    """``(rows,)`` fp32 log-sum-exp of the logits."""
    total = torch.full((len(head.states),), -math.inf, dtype=torch.float32, device=head.states.device)
    for columns, weight in head.tiles():
        total = torch.logaddexp(total, head.logits(columns, weight, head.buffer(len(weight))).logsumexp(1))
    return total
