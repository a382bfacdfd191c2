"""Packed rows unpacked into a padded batch, one sequence per row: slower, for models that cannot run packed rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lion_lightning.ops.layout import RowLayout


class PaddedSequences(NamedTuple):
    """The sequences of a row (each leaf segment with its ancestors) as a right-padded batch.

    Attributes:
        source: ``(sequences, longest)`` flat position of each token; 0 where there is padding.
        mask: ``(sequences, longest)`` bool, False where there is padding.
        first: ``(tokens,)`` for each token of the row, its first position in the flattened batch.
    """

    source: Tensor
    mask: Tensor
    first: Tensor

    def restore(self, padded: Tensor) -> Tensor:
        """Bring ``(sequences, longest, size)`` back to ``(tokens, size)``; a shared prompt is taken from one sequence.

        One, not the mean of several: they are equal, and a gradient that enters once must leave once.

        Args:
            padded: Of every token of the padded batch.
        """
        return padded.flatten(0, 1)[self.first]


def pad_row(layout: RowLayout) -> PaddedSequences:
    """Unpack a row into its sequences.

    Args:
        layout: The row's segments.
    """
    parents = {segment.parent for segment in layout.segments}
    leaves = [access for index, access in enumerate(layout.accesses) if index not in parents]
    sequences = [torch.cat([torch.arange(span.start, span.stop) for span in access.keys]) for access in leaves]
    source = pad_sequence(sequences, batch_first=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    mask = torch.arange(source.shape[1])[None, :] < lengths[:, None]
    # All of it on the CPU: on the device, boolean indexing would wait for the result.
    places = mask.flatten().nonzero().flatten()
    first = places.new_zeros(layout.tokens).scatter_reduce(0, source[mask], places, "amin", include_self=False)
    return PaddedSequences(*(part.to(layout.device, non_blocking=True) for part in (source, mask, first)))
