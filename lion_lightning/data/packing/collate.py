"""From the samples of packed rows to a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lion_lightning.ops.layout import RowLayout
from lion_lightning.types import PackedBatch, Sample, SampleSegment, Segment, segment_table


def collate(samples: Sequence[Sample], capacity: int) -> PackedBatch:
    """Lay samples end to end.

    Args:
        samples: The samples of a micro-batch's rows; at least one.
        capacity: Tokens that those rows could have held.
    """
    parts: list[SampleSegment] = []
    parents: list[int] = []
    owners: list[int] = []
    values: list[float] = []
    pairs: list[tuple[int, int]] = []
    for number, sample in enumerate(samples):
        first = len(parts)  # a parent is counted within its sample
        parents += [first + part.parent if part.parent >= 0 else -1 for part in sample.segments]
        parts += sample.segments
        owners += [number] * len(sample.segments)
        pairs += [(len(values) + chosen, len(values) + rejected) for chosen, rejected in sample.pairs]
        values += sample.values or [math.nan] * sample.num_answers
    lengths = [len(part.input_ids) for part in parts]
    segments = segment_table(lengths, parents, [part.bidirectional for part in parts])
    logit_positions, targets, weights = _targets(parts, segments)
    batch = PackedBatch(
        input_ids=_tensor([part.input_ids for part in parts]),
        position_ids=RowLayout(segments).positions,
        segments=segments,
        logit_positions=_tensor(logit_positions),
        targets=_tensor(targets),
        target_segments=_tensor([np.repeat(np.arange(len(parts)), [len(found) for found in targets])]),
        segment_samples=tuple(owners),
        sample_indices=tuple(sample.index for sample in samples),
        sources=tuple(sample.source for sample in samples),
        capacity=capacity,
        target_weights=None if (weights == 1.0).all() else torch.from_numpy(weights),
        values=tuple(values),
        pairs=tuple(pairs),
    )
    return batch if len(batch.targets) else batch.without_targets()


def _targets(
    parts: Sequence[SampleSegment], segments: Sequence[Segment]
) -> tuple[list[npt.NDArray[np.integer]], list[npt.NDArray[np.integer]], npt.NDArray[np.float32]]:
    """Flat positions that predict the targets of each segment, the targets, and the weights of all."""
    positions: list[npt.NDArray[np.integer]] = []
    targets: list[npt.NDArray[np.integer]] = []
    weights = []
    for part, segment in zip(parts, segments, strict=True):
        offsets = np.flatnonzero(part.supervised)
        if segment.parent < 0:  # the first token of a root has nothing to be predicted from
            offsets = offsets[offsets > 0]
        if segment.bidirectional and (offsets > 0).any():
            raise ValueError("a target within a bidirectional segment is seen by the token that predicts it")
        # A target's logits are those of the token before it: the parent's last, for the first token of a child.
        before_first = segments[segment.parent].stop - 1
        positions.append(np.where(offsets > 0, segment.start + offsets - 1, before_first))
        targets.append(part.input_ids[offsets])
        weights.append(np.ones(len(offsets), np.float32) if part.weights is None else part.weights[offsets])
    return positions, targets, np.concatenate(weights)


def _tensor(parts: Sequence[npt.NDArray[np.integer]]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64))
