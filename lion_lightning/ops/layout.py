"""Layout of the segments of a flat row, read by all attention paths."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lion_lightning.ops.padding import PaddedBatches, pad, similar_lengths
from lion_lightning.types import Segment


class SegmentAccess(NamedTuple):
    """One segment's queries and the spans of keys that they attend to.

    Attributes:
        queries: The segment's own span.
        keys: Spans from the oldest ancestor to the segment itself. In a bidirectional segment each query sees all of
            them, else query ``i`` all but the last ``len(queries) - 1 - i``: causal attention aligned at the bottom
            right.
    """

    queries: slice
    keys: tuple[slice, ...]


class VarlenIndex(NamedTuple):
    """Arguments of variable-length attention kernels; int32 tensors on the row's device, ``gather`` int64."""

    gather: Tensor | None
    cu_queries: Tensor
    cu_keys: Tensor
    max_queries: int
    max_keys: int


class RowLayout:
    """The segments of one flat row, and what attention paths derive from them, once per forward.

    Args:
        segments: The row's segments, parents before children.
        device: Where the row's tensors are.

    Attributes:
        masks: Cache of masks, shared by the layers; keys are the attention path's.
        bidirectional: True if any segment is.
    """

    def __init__(self, segments: Sequence[Segment], device: torch.device | str = "cpu") -> None:
        self.segments = tuple(segments)
        self.device = torch.device(device)
        self.masks: dict[tuple[Any, ...], Tensor] = {}
        self.bidirectional = any(segment.bidirectional for segment in self.segments)

    @property
    def tokens(self) -> int:
        """Length of the row."""
        return self.segments[-1].stop if self.segments else 0

    @cached_property
    def chains(self) -> tuple[tuple[int, ...], ...]:
        """For each segment, the indices of its ancestors, oldest first, and its own."""
        chains: list[tuple[int, ...]] = []
        for index, segment in enumerate(self.segments):
            chains.append((*(chains[segment.parent] if segment.parent >= 0 else ()), index))
        return tuple(chains)

    @cached_property
    def accesses(self) -> tuple[SegmentAccess, ...]:
        """Queries and keys of every segment."""
        spans = [slice(segment.start, segment.stop) for segment in self.segments]
        return tuple(SegmentAccess(spans[chain[-1]], tuple(spans[index] for index in chain)) for chain in self.chains)

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Split a tensor of the row's tokens by segment.

        One operation, whose gradient is one pass over the row: slices would each have a gradient as large as the row.

        Args:
            rows: ``(tokens, ...)``.
        """
        parts: tuple[Tensor, ...] = torch.split(rows, [segment.length for segment in self.segments])
        return parts

    @cached_property
    def varlen(self) -> VarlenIndex:
        """Cumulative lengths, and an index that gathers each segment's keys where any segment has a parent."""
        gather = None
        if any(segment.parent >= 0 for segment in self.segments):
            parts: list[Tensor] = []
            for access in self.accesses:
                parts += [torch.arange(span.start, span.stop) for span in access.keys]
            gather = torch.cat(parts).to(self.device, non_blocking=True)
        queries = [access.queries.stop - access.queries.start for access in self.accesses]
        keys = [sum(span.stop - span.start for span in access.keys) for access in self.accesses]
        return VarlenIndex(
            gather=gather,
            cu_queries=self._cumulative(queries),
            cu_keys=self._cumulative(keys),
            max_queries=max(queries),
            max_keys=max(keys),
        )

    @cached_property
    def varlen_with_sinks(self) -> VarlenIndex:
        """The same where the row's keys have one more in front, which every segment sees first."""
        first = torch.zeros(1, dtype=torch.int64)
        parts: list[Tensor] = []
        for access in self.accesses:
            parts += [first, *(torch.arange(span.start, span.stop) + 1 for span in access.keys)]
        steps = torch.arange(len(self.segments) + 1, dtype=torch.int32).to(self.device, non_blocking=True)
        return self.varlen._replace(
            gather=torch.cat(parts).to(self.device, non_blocking=True),
            cu_keys=self.varlen.cu_keys + steps,
            max_keys=self.varlen.max_keys + 1,
        )

    @cached_property
    def tree_lengths(self) -> tuple[tuple[int, int], ...]:
        """For each segment, the shortest and the longest sequence of its tree (a document, or a prompt's answers)."""
        parents = {segment.parent for segment in self.segments}
        lengths: dict[int, list[int]] = {}
        for index, (chain, access) in enumerate(zip(self.chains, self.accesses, strict=True)):
            if index not in parents:
                lengths.setdefault(chain[0], []).append(sum(span.stop - span.start for span in access.keys))
        ends = {root: (min(found), max(found)) for root, found in lengths.items()}
        return tuple(ends[chain[0]] for chain in self.chains)

    @cached_property
    def sequences(self) -> tuple[Tensor, ...]:
        """For each leaf segment, the flat positions of its ancestors' tokens and its own; int64, on the CPU."""
        parents = {segment.parent for segment in self.segments}
        leaves = [access for index, access in enumerate(self.accesses) if index not in parents]
        return tuple(torch.cat([torch.arange(span.start, span.stop) for span in access.keys]) for access in leaves)

    @cached_property
    def padded(self) -> PaddedBatches:
        """All sequences in one right-padded batch, in the order of the row."""
        return pad([self.sequences], self.tokens, self.device)

    @cached_property
    def padded_groups(self) -> PaddedBatches:
        """All sequences in right-padded batches of similar lengths."""
        return pad(similar_lengths(self.sequences), self.tokens, self.device)

    @cached_property
    def positions(self) -> Tensor:
        """``(tokens,)`` position of each token in its own sequence."""
        ends: list[int] = []
        parts = []
        for segment in self.segments:
            first = ends[segment.parent] if segment.parent >= 0 else 0
            ends.append(first + segment.length)
            parts.append(torch.arange(first, ends[-1]))
        return torch.cat(parts).to(self.device, non_blocking=True)

    @cached_property
    def visible(self) -> Tensor:
        """``(tokens, tokens)`` bool, True where the query may attend to the key. Quadratic in memory."""
        mask = torch.zeros(self.tokens, self.tokens, dtype=torch.bool)
        for segment, access in zip(self.segments, self.accesses, strict=True):
            for span in access.keys[:-1]:
                mask[access.queries, span] = True
            block = torch.ones(segment.length, segment.length, dtype=torch.bool)
            mask[access.queries, access.queries] = block if segment.bidirectional else block.tril()
        return mask.to(self.device, non_blocking=True)

    def _cumulative(self, lengths: list[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(self.device, non_blocking=True)
