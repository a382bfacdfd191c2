"""Filters of preference pairs: those without a clear preference are left out, and too long ones are truncated."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from lion_lightning.data.reports.source_report import SourceReport
from lion_lightning.data.reports.tree_reports import PairReport
from lion_lightning.data.selection.documents import Selection
from lion_lightning.data.selection.spans import Choice
from lion_lightning.data.selection.tree_filters import TreeFilters
from lion_lightning.data.selection.trees import cut, join

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairFilters(TreeFilters):
    """Leave out pairs without a clear preference, and truncate the others; trees of one prompt are joined then.

    In this order: pairs of identical answers, of equal scores, and whose scores go against the label, are left out,
    then those of too small a margin. The prompt is truncated, then each answer to the room that is left. Pairs with an
    answer that has no supervised token left, or whose answers are now identical, or are too unequal in length, are left
    out. The filters of scores keep pairs without scores. An answer that is in no pair any more goes, and a prompt
    without answers.

    Args:
        max_length: Most tokens of a prompt with one answer.
        max_prompt_length: Most tokens of a prompt; None for no other limit.
        keep: Which end of a prompt that is too long stays: ``start`` or ``end``.
        min_margin: Pairs with a smaller difference of scores are left out.
        max_length_ratio: Pairs whose longer answer has more than so many times the tokens of the shorter, after the
            cut, are left out; None keeps all.
    """

    report: ClassVar[type[SourceReport]] = PairReport

    min_margin: float = 0.0
    max_length_ratio: float | None = None

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_margin < math.inf:
            raise ValueError(f"data.min_margin is {self.min_margin}; give a difference of scores, 0 or more")
        if self.max_length_ratio is not None and not self.max_length_ratio >= 1:
            raise ValueError(
                f"data.max_length_ratio is {self.max_length_ratio}; it is longer over shorter answer, so 1 or more"
            )

    @override
    def apply(self, selection: Selection) -> Selection:
        selection = selection.filter_pairs(~_identical(selection), "identical answers")
        selection = self._filter_scores(selection)
        selection = self.truncate(selection)
        supervised: Choice = selection.targets[selection.spans.pair_segments].min(axis=1) > 0
        selection = selection.filter_pairs(supervised, "an answer without a supervised token")
        if "answers truncated" in selection.truncated:
            selection = selection.filter_pairs(~_identical(selection), "answers identical once truncated")
        if self.max_length_ratio is None:
            return selection
        answers = selection.spans.segment_lengths[selection.spans.pair_segments]  # (pairs, 2)
        fits: Choice = answers.max(axis=1) <= self.max_length_ratio * answers.min(axis=1)
        return selection.filter_pairs(fits, f"length ratio above {self.max_length_ratio:g}")

    @override
    def arrange(self, selection: Selection, row_length: int | None = None) -> Selection:
        return cut(join(selection), row_length)

    def _filter_scores(self, selection: Selection) -> Selection:
        """Leave out what the scores do not decide. Comparisons with an unknown margin (NaN) are false."""
        margins = _margins(selection)
        if self.min_margin and len(margins) and np.isnan(margins).all():
            logger.warning(
                "source %s: data.min_margin is %g, but no pair has scores, so all are kept; name them in `columns` as "
                "score_chosen and score_rejected",
                selection.source.label,
                self.min_margin,
            )
        selection = selection.filter_pairs(~(margins == 0), "equal scores")
        selection = selection.filter_pairs(~(_margins(selection) < 0), "scores against the label")
        below = f"score margin below {self.min_margin:g}"
        return selection.filter_pairs(~(_margins(selection) < self.min_margin), below)


def _margins(selection: Selection) -> npt.NDArray[np.float64]:
    """``(pairs,)`` by how much chosen scores above rejected; NaN where that is unknown."""
    values = selection.spans.values[selection.spans.pair_segments].astype(np.float64)
    margins: npt.NDArray[np.float64] = values[:, 0] - values[:, 1]
    return margins


def _identical(selection: Selection) -> Choice:
    """True for each pair whose answers are the same tokens; only those of equal length are read."""
    spans = selection.spans
    segments = spans.pair_segments
    chosen, rejected = spans.segment_lengths[segments].T
    same: Choice = chosen == rejected
    for pair in np.flatnonzero(same).tolist():
        first, second = segments[pair].tolist()
        same[pair] = np.array_equal(selection.segment(first).input_ids, selection.segment(second).input_ids)
    return same
