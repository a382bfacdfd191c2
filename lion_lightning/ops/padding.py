"""The sequences of a packed row as right-padded batches, for what cannot run on the row itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

MAX_PADDING = 0.25
"""Share of padding that a batch of sequences of similar lengths may have."""


class PaddedBatches(NamedTuple):
    """The sequences of a row (each leaf segment with its ancestors), right-padded.

    Attributes:
        sources: For each batch, ``(sequences, longest)`` flat position of each token; 0 where there is padding.
        masks: Like ``sources``, bool, False where there is padding.
        first: ``(tokens,)`` for each token of the row, its first position in the flattened batches, laid end to end.
    """

    sources: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    first: Tensor

    def restore(self, batches: Sequence[Tensor]) -> Tensor:
        """Bring batches ``(sequences, longest, size)`` back to ``(tokens, size)``.

        A shared prompt is taken from one sequence, not as the mean of several: they are equal, and a gradient that
        enters once must leave once.

        Args:
            batches: In the order of ``sources``.
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
    sources = [pad_sequence(list(group), batch_first=True) for group in groups]
    masks = [pad_sequence([torch.ones_like(s, dtype=torch.bool) for s in group], batch_first=True) for group in groups]
    flat = torch.cat([source.flatten() for source in sources])
    places = torch.cat([mask.flatten() for mask in masks]).nonzero().flatten()
    first = places.new_zeros(tokens).scatter_reduce(0, flat[places], places, "amin", include_self=False)
    moved = [[part.to(device, non_blocking=True) for part in parts] for parts in (sources, masks)]
    return PaddedBatches(tuple(moved[0]), tuple(moved[1]), first.to(device, non_blocking=True))


def similar_lengths(sequences: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group sequences so that padding is at most ``MAX_PADDING`` of each group's right-padded batch.

    Args:
        sequences: Of any lengths.
    """
    groups: list[list[Tensor]] = []
    for sequence in sorted(sequences, key=len, reverse=True):  # the first of a group is its longest
        group = [*groups[-1], sequence] if groups else [sequence]
        if groups and sum(map(len, group)) >= (1.0 - MAX_PADDING) * len(group) * len(group[0]):
            groups[-1] = group
        else:
            groups.append([sequence])
    return groups
