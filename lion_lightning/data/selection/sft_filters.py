"""Filters of documents: too long ones are truncated, and those with too few supervised tokens are left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from typing_extensions import override

from lion_lightning.data.selection.documents import Selection
from lion_lightning.data.selection.mixture import Filters

Overlong = Literal["truncate", "split", "drop"]


@dataclass(frozen=True)
class SFTFilters(Filters):
    """Truncate documents that are too long, and leave out those with too few supervised tokens.

    Args:
        max_length: Most tokens of a document.
        overlong: What happens to a longer one: ``truncate`` keeps its start; ``split`` cuts it into parts of
            ``max_length`` and a rest, of which each first token is not trained; ``drop`` leaves it out.
        min_supervised_share: Documents with a smaller share of supervised tokens are left out. The LIONs paper's code
            leaves out what is masked by more than 90 %: 0.1 here.
    """

    max_length: int
    overlong: Overlong = "truncate"
    min_supervised_share: float = 0.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.max_length < 2:
            raise ValueError(f"data.max_length is {self.max_length}; a row needs 2 tokens to predict one")
        if self.overlong not in (known := get_args(Overlong)):
            raise ValueError(f"data.overlong: {self.overlong!r} is unknown; choose {', '.join(known)}")
        if not 0 <= self.min_supervised_share <= 1:
            raise ValueError(f"data.min_supervised_share is {self.min_supervised_share}; give a share from 0 to 1")

    @override
    def apply(self, selection: Selection) -> Selection:
        spans, most = selection.spans, self.max_length
        if self.overlong == "truncate":
            fitting = selection.truncate(spans.starts, np.minimum(spans.stops, spans.starts + most), "truncated")
        elif self.overlong == "drop":
            fitting = selection.filter(spans.lengths <= most, f"longer than {most} tokens")
        else:
            fitting = _split(selection, most)
        supervised = fitting.filter(fitting.targets > 0, "no supervised token")
        shares = supervised.targets / supervised.spans.lengths
        return supervised.filter(
            shares >= self.min_supervised_share, f"supervised share below {self.min_supervised_share:g}"
        )


def _split(selection: Selection, max_length: int) -> Selection:
    spans = selection.spans
    parts = np.maximum(-(-spans.lengths // max_length), 1)  # rounded up; an empty document stays one
    repeated = spans.take(np.repeat(np.arange(len(parts)), parts))
    nth = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)  # 0, 1, ... within each document
    starts = repeated.starts + nth * max_length
    parted = repeated._replace(starts=starts, stops=np.minimum(repeated.stops, starts + max_length))
    return replace(selection, spans=parted, split=int((parts > 1).sum()))
