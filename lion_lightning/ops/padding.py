"""The slow way to run a packed row: every sequence alone in a padded batch. For models that cannot do packed rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lion_lightning.ops.layout import RowLayout


class PaddedSequences(NamedTuple):
    """The sequences of a row (each leaf segment with its ancestors) as a right-padded batch.

    Attributes:
        source: ``(sequences, longest)`` flat position of each token; 0 where there is padding.
        mask: ``(sequences, longest)`` bool, False where there is padding.
    """

    source: Tensor
    mask: Tensor

    def restore(self, padded: Tensor) -> Tensor:
        """Bring ``(sequences, longest, size)`` back to ``(tokens, size)``; a shared prompt is taken from one sequence.

        One, not the average of several: they are equal, and a gradient that enters once must leave once.
        """
        positions = self.source[self.mask]
        tokens = int(positions.max()) + 1
        places = torch.arange(len(positions), device=padded.device)
        owner = places.new_zeros(tokens).scatter_reduce(0, positions, places, "amin", include_self=False)
        return padded[self.mask][owner]


def pad_row(layout: RowLayout) -> PaddedSequences:
    """Unpack a row into its sequences.

    Args:
        layout: The row's segments.
    """
    parents = {segment.parent for segment in layout.segments}
    leaves = [access for index, access in enumerate(layout.accesses) if index not in parents]
    sequences = [torch.cat([torch.arange(span.start, span.stop) for span in access.keys]) for access in leaves]
    source = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    mask = torch.arange(source.shape[1])[None, :] < lengths[:, None]
    return PaddedSequences(source.to(layout.device), mask.to(layout.device))
