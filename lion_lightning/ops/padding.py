"""The sequences of a packed row as right-padded batches, for what cannot run on the row itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

MAX_PADDING = 0.25
"""Share of padding that a batch of sequences of similar lengths may have."""


class PaddedBatch(NamedTuple):
    """Some sequences of a row, right-padded, in which a token of a shared prompt occurs once per sequence.

    Attributes:
        source: ``(sequences, longest)`` flat position of each token; 0 where there is padding.
        mask: Like ``source``, bool, False where there is padding.
        places: ``(distinct tokens,)`` first position of each token of the row in the flattened batch.
        copies: Like ``source``, index of each token among ``places``; 0 where there is padding.
    """

    source: Tensor
    mask: Tensor
    places: Tensor
    copies: Tensor


class PaddedBatches(NamedTuple):
    """The sequences of a row (each leaf segment with its ancestors), right-padded.

    Attributes:
        batches: Each of all or of some sequences.
        first: ``(tokens,)`` for each token of the row, its first position in the flattened batches, laid end to end.
    """

    batches: tuple[PaddedBatch, ...]
    first: Tensor

    def restore(self, batches: Sequence[Tensor]) -> Tensor:
        """Bring batches ``(sequences, longest, size)`` back to ``(tokens, size)``.

        A shared prompt is taken from one sequence, not as the mean of several: they are equal, and a gradient that
        enters once must leave once.

        Args:
            batches: In the order of :attr:`batches`.
        """
        flat = [batch.flatten(0, 1) for batch in batches]
        return (flat[0] if len(flat) == 1 else torch.cat(flat))[self.first]


def pad(groups: Sequence[Sequence[Tensor]], tokens: int, device: torch.device) -> PaddedBatches:
    """Right-pad groups of sequences, each to its longest.

    Args:
        groups: Sequences of flat positions, on the CPU.
        tokens: Length of the row.
        device: Where the result is to be.
    """
    # All of it on the CPU: on the device, boolean indexing would wait for the result.
    batches = []
    for group in groups:
        source = pad_sequence(list(group), batch_first=True)
        mask = pad_sequence([torch.ones_like(sequence, dtype=torch.bool) for sequence in group], batch_first=True)
        distinct, copies = torch.unique(source[mask], return_inverse=True)
        places = _first(copies, mask.flatten().nonzero().flatten(), len(distinct))
        batches.append(PaddedBatch(source, mask, places, torch.zeros_like(source).masked_scatter_(mask, copies)))
    masks = torch.cat([batch.mask.flatten() for batch in batches])
    sources = torch.cat([batch.source.flatten() for batch in batches])
    places = masks.nonzero().flatten()
    first = _first(sources[places], places, tokens)
    moved = (PaddedBatch(*(part.to(device, non_blocking=True) for part in batch)) for batch in batches)
    return PaddedBatches(tuple(moved), first.to(device, non_blocking=True))


def _first(keys: Tensor, places: Tensor, size: int) -> Tensor:
    """For each key below ``size``, the smallest of its places."""
    return places.new_zeros(size).scatter_reduce(0, keys, places, "amin", include_self=False)


def similar_lengths(sequences: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group sequences so that padding is at most ``MAX_PADDING`` of each group's right-padded batch."""
    groups: list[list[Tensor]] = []
    for sequence in sorted(sequences, key=len, reverse=True):  # the first of a group is its longest
        group = [*groups[-1], sequence] if groups else [sequence]
        if groups and sum(map(len, group)) >= (1.0 - MAX_PADDING) * len(group) * len(group[0]):
            groups[-1] = group
        else:
            groups.append([sequence])
    return groups
