"""Weights and reasoning of tokens on disk, as runs of tokens that are alike: a few numbers an example, mostly none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lion_lightning.types import SampleSegment

RUNS = pa.list_(pa.struct([("stop", pa.int32()), ("weight", pa.float32()), ("reasoning", pa.bool_())]))
"""Runs of an example's tokens, each up to ``stop``; null where all count 1 and none is reasoning."""


def runs_of(segments: Sequence[SampleSegment]) -> list[dict[str, Any]] | None:
    """Runs of an example, through all of its segments, one after the other."""
    if all(segment.weights is None and segment.reasoning is None for segment in segments):
        return None
    weights = np.ones(sum(len(segment.input_ids) for segment in segments), np.float32)
    reasoning = np.zeros(len(weights), np.bool_)
    start = 0
    for segment in segments:
        part = slice(start, start + len(segment.input_ids))
        weights[part] = 1.0 if segment.weights is None else segment.weights
        reasoning[part] = False if segment.reasoning is None else segment.reasoning
        start = part.stop
    changes = np.flatnonzero((np.diff(weights) != 0) | np.diff(reasoning))
    lasts = [*changes.tolist(), len(weights) - 1]
    return [{"stop": last + 1, "weight": weights[last], "reasoning": reasoning[last]} for last in lasts]


class Runs:
    """The runs of a batch's examples.

    Args:
        column: A column of the type ``RUNS``; views of it are kept.
    """

    def __init__(self, column: Any) -> None:
        self._bounds = column.offsets.to_numpy()  # of each example's runs; equal where it has none
        self._stops, self._weights = (column.values.field(name).to_numpy() for name in ("stop", "weight"))
        self._reasoning = column.values.field("reasoning").to_numpy(zero_copy_only=False)  # unpacked from bits

    def put(self, segment: SampleSegment, example: int, start: int, stop: int) -> SampleSegment:
        """Tokens ``start`` to ``stop`` of an example of the batch, with the weights and reasoning of its runs."""
        own = slice(self._bounds[example], self._bounds[example + 1])
        weights, reasoning = self._weights[own], self._reasoning[own]
        if not len(weights):
            return segment
        run = np.searchsorted(self._stops[own], np.arange(start, stop), side="right")  # of each token
        return segment._replace(
            weights=None if (weights == 1.0).all() else weights[run],
            reasoning=reasoning[run] if reasoning.any() else None,
        )
