"""From the samples of packed rows to a batch."""

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
        samples: The samples of a micro-batch's rows; at least one.
        capacity: Tokens that those rows could have held.
    """
    parts = [part for sample in samples for part in sample.segments]
    segments = segment_table([len(part.input_ids) for part in parts], _parents(samples))
    input_ids, logit_positions, targets, weights = [], [], [], []
    for part, segment in zip(parts, segments, strict=True):
        supervised = _target_offsets(part, segment)
        input_ids.append(part.input_ids)
        logit_positions.append(_logit_positions(supervised, segment, segments))
        targets.append(part.input_ids[supervised])
        weights.append(np.ones(len(supervised), np.float32) if part.weights is None else part.weights[supervised])
    return PackedBatch(
        input_ids=_tensor(input_ids),
        position_ids=_tensor(_position_ids(segments)),
        segments=segments,
        logit_positions=_tensor(logit_positions),
        targets=_tensor(targets),
        target_segments=_tensor([np.repeat(np.arange(len(parts)), [len(found) for found in targets])]),
        segment_samples=tuple(number for number, sample in enumerate(samples) for _ in sample.segments),
        sample_indices=tuple(sample.index for sample in samples),
        sources=tuple(sample.source for sample in samples),
        capacity=capacity,
        target_weights=_weights(weights),
    )


def _parents(samples: Sequence[Sample]) -> list[int]:
    """Parent of each segment, counted through all samples."""
    parents: list[int] = []
    for sample in samples:
        first = len(parents)
        parents += [first + part.parent if part.parent >= 0 else -1 for part in sample.segments]
    return parents


def _target_offsets(part: SampleSegment, segment: Segment) -> Integers:
    """Supervised tokens of a segment; the first of a root has nothing to be predicted from."""
    offsets = np.flatnonzero(part.supervised)
    return offsets if segment.parent >= 0 else offsets[offsets > 0]


def _logit_positions(offsets: Integers, segment: Segment, segments: Sequence[Segment]) -> Integers:
    """Flat position that predicts each target: the token before it, or the parent's last for a child's first token."""
    before_first = segments[segment.parent].stop - 1  # unused for a root, which has no target at offset 0
    return np.where(offsets > 0, segment.start + offsets - 1, before_first)


def _weights(parts: Sequence[npt.NDArray[np.float32]]) -> Tensor | None:
    weights = np.concatenate(parts)
    return None if (weights == 1.0).all() else torch.from_numpy(weights)


def _position_ids(segments: Sequence[Segment]) -> list[Integers]:
    """Positions restart in a root, and go on from the parent's end in a child."""
    ends: list[int] = []
    positions = []
    for segment in segments:
        first = ends[segment.parent] if segment.parent >= 0 else 0
        ends.append(first + segment.length)
        positions.append(np.arange(first, ends[-1]))
    return positions


def _tensor(parts: Sequence[npt.NDArray[np.integer]]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64))
