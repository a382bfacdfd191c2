"""From samples to a packed batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lion_lightning.types import PackedBatch, Sample, SampleSegment, Segment, segment_table

Integers = npt.NDArray[np.int64]


def collate(samples: Sequence[Sample], capacity: int) -> PackedBatch:
    """Lay samples end to end.

    Args:
        samples: What the rows of a micro-batch hold; at least one.
        capacity: Tokens that those rows could have held.
    """
    pieces = [piece for sample in samples for piece in sample.segments]
    segments = segment_table([len(piece.input_ids) for piece in pieces], _parents(samples))
    places = [_target_places(piece, segment) for piece, segment in zip(pieces, segments, strict=True)]
    owners = np.repeat(np.arange(len(pieces)), [len(found) for found in places])
    return PackedBatch(
        input_ids=_tensor([piece.input_ids for piece in pieces]),
        position_ids=_tensor(_positions(segments)),
        segments=segments,
        logit_positions=_tensor(
            [_predictors(found, owner, segments) for found, owner in zip(places, segments, strict=True)]
        ),
        targets=_tensor([piece.input_ids[found] for piece, found in zip(pieces, places, strict=True)]),
        target_segments=_tensor([owners]),
        segment_samples=tuple(place for place, sample in enumerate(samples) for _ in sample.segments),
        sample_indices=tuple(sample.index for sample in samples),
        sources=tuple(sample.source for sample in samples),
        capacity=capacity,
    )


def _parents(samples: Sequence[Sample]) -> list[int]:
    parents: list[int] = []
    for sample in samples:
        first = len(parents)
        parents += [first + piece.parent if piece.parent >= 0 else -1 for piece in sample.segments]
    return parents


def _target_places(piece: SampleSegment, segment: Segment) -> Integers:
    """Supervised places of a piece; nothing comes before the first token of a root, so that is never one."""
    places = np.flatnonzero(piece.supervised)
    return places if segment.parent >= 0 else places[places > 0]


def _predictors(places: Integers, segment: Segment, segments: Sequence[Segment]) -> Integers:
    """Flat position that predicts each place: the one before it, or the parent's last for a child's first token."""
    before_first = segments[segment.parent].stop - 1  # unused for a root, which has no target at place 0
    return np.where(places > 0, segment.start + places - 1, before_first)


def _positions(segments: Sequence[Segment]) -> list[Integers]:
    ends: list[int] = []
    positions = []
    for segment in segments:
        first = ends[segment.parent] if segment.parent >= 0 else 0
        ends.append(first + segment.length)
        positions.append(np.arange(first, ends[-1]))
    return positions


def _tensor(parts: Sequence[npt.NDArray[np.integer]]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64))
