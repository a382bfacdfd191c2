"""Base of the filters of prompts with answers: limits of their lengths."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lion_lightning.data.selection.documents import Selection
from lion_lightning.data.selection.mixture import Filters

Keep = Literal["start", "end"]


@dataclass(frozen=True)
class TreeFilters(Filters, ABC):
    """Limits of a prompt and its answers; a subclass says what is left out.

    Args:
        max_length: Most tokens of a prompt with one answer.
        max_prompt_length: Most tokens of a prompt; None for no other limit.
        keep: Which end of a prompt that is too long stays: ``start`` or ``end``.
    """

    max_length: int
    max_prompt_length: int | None = None
    keep: Keep = "end"

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.max_length < 2:
            raise ValueError(f"data.max_length is {self.max_length}; a prompt and an answer need 2 tokens at least")
        if self.max_prompt_length is not None and not 1 <= self.max_prompt_length < self.max_length:
            raise ValueError(
                f"data.max_prompt_length is {self.max_prompt_length}; give at least 1 and less than data.max_length "
                f"({self.max_length}), so that there is room for an answer"
            )
        if self.keep not in get_args(Keep):
            raise ValueError(f"data.keep: {self.keep!r} is unknown; choose start or end")

    def truncate_prompts(self, selection: Selection) -> Selection:
        """Truncate prompts that are too long."""
        if self.max_prompt_length is None:
            return selection
        spans = selection.spans
        starts, stops = spans.starts.copy(), spans.stops.copy()
        over = np.where(spans.roots, np.maximum(spans.segment_lengths - self.max_prompt_length, 0), 0)
        if self.keep == "start":
            stops -= over
        else:
            starts += over
        return selection.truncate(starts, stops, "prompts truncated")

    def truncate(self, selection: Selection) -> Selection:
        """Truncate prompts, then answers to the room that is left."""
        selection = self.truncate_prompts(selection)
        spans = selection.spans
        room = np.maximum(self.max_length - spans.segment_lengths[spans.offsets[:-1]], 0)[spans.owners]
        stops = np.where(spans.roots, spans.stops, np.minimum(spans.stops, spans.starts + room))
        return selection.truncate(spans.starts, stops, "answers truncated")
