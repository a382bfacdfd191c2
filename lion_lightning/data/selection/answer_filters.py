"""Filters of single answers with labels, and of groups of scored answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from typing_extensions import override

from lion_lightning.data.packing.best_fit import Integers
from lion_lightning.data.reports.source_report import SourceReport
from lion_lightning.data.reports.tree_reports import AnswerReport, GroupReport, values_differ
from lion_lightning.data.selection.documents import Selection
from lion_lightning.data.selection.mismatched import add_mismatched
from lion_lightning.data.selection.spans import Choice
from lion_lightning.data.selection.tree_filters import TreeFilters
from lion_lightning.data.selection.trees import cut, join


@dataclass(frozen=True)
class AnswerFilters(TreeFilters):
    """Truncate prompts and answers, and leave out answers without a supervised token; trees of one prompt are joined.

    An answer that is read again is one; where its label is another then, it is there once with each.

    Args:
        max_length: Most tokens of a prompt with one answer.
        max_prompt_length: Most tokens of a prompt; None for no other limit.
        keep: Which end of a prompt that is too long stays: ``start`` or ``end``.
        mismatched: Whether each tree gets the answer of another prompt too; see :func:`add_mismatched`.
    """

    report: ClassVar[type[SourceReport]] = AnswerReport

    mismatched: bool = True

    @override
    def apply(self, selection: Selection) -> Selection:
        values = selection.spans.values
        unknown = (values != 0) & (values != 1) & ~selection.spans.roots
        _refuse(selection, unknown, "an answer has the label {}; give 1 where it is wanted, and 0 where it is not")
        selection = self.truncate(selection)
        return selection.filter_answers(selection.targets > 0, "no supervised token")

    @override
    def arrange(self, selection: Selection, row_length: int | None = None) -> Selection:
        selection = join(selection)
        # Mismatched answers are added before the cut, since a row has to hold them too.
        return cut(add_mismatched(selection, self.max_length) if self.mismatched else selection, row_length)

    @override
    def problems(self, reports: Sequence[SourceReport]) -> list[str]:
        found = [report for report in reports if isinstance(report, AnswerReport) and report.kept.documents]
        return [*_one_label(found), *(_one_prompt(found) if self.mismatched else [])]


@dataclass(frozen=True)
class GroupFilters(TreeFilters):
    """Truncate prompts and answers, and leave out groups that say nothing; equal answers of a group stay.

    In this order: groups of one answer are left out; prompt and answers are truncated; answers without a supervised
    token are left out, and groups that have fewer than two answers then, or whose scores are all equal.

    Args:
        max_length: Most tokens of a prompt with one answer.
        max_prompt_length: Most tokens of a prompt; None for no other limit.
        keep: Which end of a prompt that is too long stays: ``start`` or ``end``.
        keep_equal: Whether groups whose scores are all equal stay.
    """

    report: ClassVar[type[SourceReport]] = GroupReport

    keep_equal: bool = False

    @override
    def apply(self, selection: Selection) -> Selection:
        unknown = np.isnan(selection.spans.values) & ~selection.spans.roots
        _refuse(selection, unknown, "an answer has the score {}; give each answer of a group a number (`scores`)")
        if len(selection.spans.numbers) and _sizes(selection).max() < 2:
            raise ValueError(
                f"source {selection.source.label}: no row has two answers, and a group compares the answers of a row "
                "(`answers` and `scores`); UnpairedDataModule takes single answers"
            )
        selection = selection.filter(_sizes(selection) > 1, "fewer than two answers")
        selection = self.truncate(selection)
        selection = selection.filter_answers(selection.targets > 0, "no supervised token")
        # Again: what was left out since may have left one answer.
        selection = selection.filter(_sizes(selection) > 1, "fewer than two answers")
        return selection if self.keep_equal else selection.filter(values_differ(selection.spans), "scores all equal")


def _sizes(selection: Selection) -> Integers:
    """``(documents,)`` answers of each."""
    return np.diff(selection.spans.offsets) - 1


def _refuse(selection: Selection, wrong: Choice, problem: str) -> None:
    if wrong.any():
        first = int(wrong.argmax())
        where = selection.table.where(int(selection.spans.rows[first]))
        raise ValueError(f"{where}: {problem.format(f'{selection.spans.values[first]:g}')}")


def _one_label(reports: Sequence[AnswerReport]) -> list[str]:
    wanted = sum(report.desirable.documents for report in reports)
    answers = sum(report.kept.documents for report in reports)
    if not answers or 0 < wanted < answers:
        return []
    names = ", ".join(report.name for report in reports)
    return [
        f"data.sources ({names}): all {answers:,} answers have the label {int(wanted > 0)}, with nothing to tell them "
        "from; add answers of the other label, name their column in `columns` (`label`), or train on wanted ones with "
        "SFTDataModule"
    ]


def _one_prompt(reports: Sequence[AnswerReport]) -> list[str]:
    return [
        f"source {report.name}: its answers are all to one prompt, and a mismatched answer is one to another; add rows "
        "of other prompts, or set data.mismatched: false"
        for report in reports
        if not report.mismatched.documents
    ]
