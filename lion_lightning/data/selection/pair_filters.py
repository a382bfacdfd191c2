"""What is done to preference pairs before they are trained on: leave out what says nothing, and cut to length."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from typing_extensions import override

from lion_lightning.data.reports.source_report import PairReport, SourceReport
from lion_lightning.data.selection.documents import Choice, Selection
from lion_lightning.data.selection.mixture import Filters

logger = logging.getLogger(__name__)

Keep = Literal["start", "end"]

_PROMPT, _CHOSEN, _REJECTED = range(3)


@dataclass(frozen=True)
class PairFilters(Filters):
    """Leave out pairs that say nothing about which answer is better, and cut the others to length.

    In this order: pairs of identical answers, of equal scores, and whose scores go against the label, are left out,
    then those of too small a margin. The prompt is cut, then each answer to the room that is left. Pairs with a side
    that has no supervised token left, or whose answers became identical by the cut, or are too unequal in length, are
    left out. A pair without scores passes all that is about scores.

    Args:
        max_length: Tokens that a prompt may have together with one answer.
        max_prompt_length: Tokens that the prompt alone may have; None for no limit of its own.
        keep: Which end of a prompt that is too long stays: ``start`` or ``end``.
        min_margin: Pairs with a smaller difference of scores are left out.
        max_length_ratio: Pairs whose longer answer has more than so many times the tokens of the shorter, after the
            cut, are left out; None keeps all.

    Raises:
        ValueError: An argument makes no sense.
    """

    report: ClassVar[type[SourceReport]] = PairReport

    max_length: int
    max_prompt_length: int | None = None
    keep: Keep = "end"
    min_margin: float = 0.0
    max_length_ratio: float | None = None

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
        if not 0 <= self.min_margin < math.inf:
            raise ValueError(f"data.min_margin is {self.min_margin}; give a difference of scores, 0 or more")
        if self.max_length_ratio is not None and not self.max_length_ratio >= 1:
            raise ValueError(
                f"data.max_length_ratio is {self.max_length_ratio}; it is longer over shorter answer, so 1 or more"
            )

    @override
    def apply(self, selection: Selection) -> Selection:
        """See the base class."""
        different = selection.filter(~_identical(selection), "identical answers")
        cut = self._cut_answers(self._cut_prompts(self._clear(different)))
        taught = cut.filter(cut.targets[:, _CHOSEN:].min(axis=1) > 0, "an answer without a supervised token")
        return self._alike(taught.filter(~_identical(taught), "answers identical once cut"))

    def _clear(self, selection: Selection) -> Selection:
        """Leave out what the scores do not decide. Comparisons with an unknown margin (NaN) are false."""
        if self.min_margin and len(selection.margins) and np.isnan(selection.margins).all():
            logger.warning(
                "source %s: data.min_margin is %g, but no pair has scores, so all are kept; name them in `columns` as "
                "score_chosen and score_rejected",
                selection.source.label,
                self.min_margin,
            )
        untied = selection.filter(~(selection.margins == 0), "equal scores")
        right = untied.filter(~(untied.margins < 0), "scores against the label")
        return right.filter(~(right.margins < self.min_margin), f"score margin below {self.min_margin:g}")

    def _cut_prompts(self, selection: Selection) -> Selection:
        if self.max_prompt_length is None:
            return selection
        spans = selection.spans
        starts, stops = spans.starts.copy(), spans.stops.copy()
        over = np.maximum(spans.segment_lengths[:, _PROMPT] - self.max_prompt_length, 0)
        if self.keep == "start":
            stops[:, _PROMPT] -= over
        else:
            starts[:, _PROMPT] += over
        return selection.truncate(starts, stops, "prompts truncated")

    def _cut_answers(self, selection: Selection) -> Selection:
        spans = selection.spans
        stops, room = spans.stops.copy(), np.maximum(self.max_length - spans.segment_lengths[:, [_PROMPT]], 0)
        stops[:, _CHOSEN:] = np.minimum(stops, spans.starts + room)[:, _CHOSEN:]
        return selection.truncate(spans.starts, stops, "answers truncated")

    def _alike(self, selection: Selection) -> Selection:
        if self.max_length_ratio is None:
            return selection
        answers = selection.spans.segment_lengths[:, _CHOSEN:]
        fits = answers.max(axis=1) <= self.max_length_ratio * answers.min(axis=1)
        return selection.filter(fits, f"length ratio above {self.max_length_ratio:g}")


def _identical(selection: Selection) -> Choice:
    """Whether both answers of each pair are the same tokens."""
    spans, pieces = selection.spans, selection.spans.segment_lengths
    same: Choice = pieces[:, _CHOSEN] == pieces[:, _REJECTED]
    for place in np.flatnonzero(same).tolist():
        row = int(spans.rows[place])
        bounds = zip(spans.starts[place, _CHOSEN:].tolist(), spans.stops[place, _CHOSEN:].tolist(), strict=True)
        chosen, rejected = (selection.table.segment(row, start, stop).input_ids for start, stop in bounds)
        same[place] = np.array_equal(chosen, rejected)
    return same
