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
    """One call of a variable-length attention kernel, for some of a row's segments; tensors are on the row's device.

    Attributes:
        is_causal: Whether these are the causal segments, or the bidirectional ones.
        queries: int64 flat positions of the segments' tokens; None for all of the row.
        keys: int64 positions of each segment's keys, one segment after the other; None for the row as it is.
        cu_queries: int32 cumulative numbers of queries.
        cu_keys: int32 cumulative numbers of keys.
        max_queries: Queries of the longest segment.
        max_keys: Most keys of a segment.
    """

    is_causal: bool
    queries: Tensor | None
    keys: Tensor | None
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
    def varlen(self) -> tuple[VarlenIndex, ...]:
        """A call for the causal segments, and one for the bidirectional ones, where there are such."""
        return self._varlen(sinks=0)

    @cached_property
    def varlen_with_sinks(self) -> tuple[VarlenIndex, ...]:
        """The same where the row's keys have one more in front, which every segment sees first."""
        return self._varlen(sinks=1)

    @cached_property
    def varlen_order(self) -> Tensor:
        """``(tokens,)`` place of each token among the queries of both calls, one after the other."""
        return torch.cat([index.queries for index in self.varlen if index.queries is not None]).argsort()

    @cached_property
    def tree_lengths(self) -> tuple[tuple[int, int], ...]:
        """For each segment, the shortest and the longest sequence of its tree (a document, or a prompt's answers)."""
        lengths: dict[int, list[int]] = {}
        for chain in self.leaf_chains:
            keys = self.accesses[chain[-1]].keys
            lengths.setdefault(chain[0], []).append(sum(span.stop - span.start for span in keys))
        ends = {root: (min(found), max(found)) for root, found in lengths.items()}
        return tuple(ends[chain[0]] for chain in self.chains)

    @cached_property
    def sequences(self) -> tuple[Tensor, ...]:
        """For each leaf segment, the flat positions of its ancestors' tokens and its own; int64, on the CPU."""
        return tuple(_positions(self.accesses[chain[-1]].keys) for chain in self.leaf_chains)

    @cached_property
    def leaf_chains(self) -> tuple[tuple[int, ...], ...]:
        """The chains that end in a segment without children, which are the row's sequences."""
        parents = {segment.parent for segment in self.segments}
        return tuple(chain for chain in self.chains if chain[-1] not in parents)

    @cached_property
    def padded(self) -> PaddedBatches:
        """All sequences in one right-padded batch, in the order of the row."""
        return pad([self.sequences], self.tokens, self.device)

    @cached_property
    def padded_visible(self) -> Tensor:
        """``(sequences, longest, longest)`` bool for :attr:`padded`, True where the query may attend to the key."""
        (batch,) = self.padded.batches
        longest = batch.mask.shape[1]
        mask = torch.ones(longest, longest, dtype=torch.bool).tril().repeat(len(self.sequences), 1, 1)
        for own, chain in zip(mask, self.leaf_chains, strict=True):
            start = 0
            for segment in (self.segments[index] for index in chain):
                part = slice(start, start := start + segment.length)
                own[part, part] |= segment.bidirectional
        return mask.to(self.device, non_blocking=True) & batch.mask[:, None, :]

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

    def _varlen(self, sinks: int) -> tuple[VarlenIndex, ...]:
        kinds: dict[bool, list[SegmentAccess]] = {True: [], False: []}
        for segment, access in zip(self.segments, self.accesses, strict=True):
            kinds[not segment.bidirectional].append(access)
        return tuple(self._varlen_index(is_causal, found, sinks) for is_causal, found in kinds.items() if found)

    def _varlen_index(self, is_causal: bool, accesses: list[SegmentAccess], sinks: int) -> VarlenIndex:
        all_segments = len(accesses) == len(self.segments)
        spans: list[slice] = []  # of the keys of all segments
        counts: list[int] = []  # of each
        for access in accesses:
            own = [slice(0, sinks), *(slice(span.start + sinks, span.stop + sinks) for span in access.keys)]
            spans += own
            counts.append(sum(span.stop - span.start for span in own))
        as_it_is = all_segments and not sinks and all(len(access.keys) == 1 for access in accesses)
        queries = [access.queries for access in accesses]
        lengths = [span.stop - span.start for span in queries]
        return VarlenIndex(
            is_causal=is_causal,
            queries=None if all_segments else _positions(queries).to(self.device, non_blocking=True),
            keys=None if as_it_is else _positions(spans).to(self.device, non_blocking=True),
            cu_queries=self._cumulative(lengths),
            cu_keys=self._cumulative(counts),
            max_queries=max(lengths),
            max_keys=max(counts),
        )

    def _cumulative(self, lengths: list[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(self.device, non_blocking=True)


def _positions(spans: Sequence[slice]) -> Tensor:
    return torch.cat([torch.arange(span.start, span.stop) for span in spans])
