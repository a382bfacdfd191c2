"""From tokenized sources to the documents of an epoch, with counts of everything left out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

import numpy as np

from lion_lightning.data.reports.source_report import SourceReport
from lion_lightning.data.selection.documents import Documents, Selection
from lion_lightning.data.selection.spans import Examples, Spans, sort_hashes
from lion_lightning.data.selection.trees import leave_out_repeated
from lion_lightning.data.sources.readers import Numbers
from lion_lightning.data.sources.source import Source

MakeDocuments = Callable[[Sequence[Selection]], Documents]
"""From the final selection of each source to the documents."""

MAX_DOCUMENTS = 10**9
"""Documents of an epoch; more would take tens of gigabytes for their numbers alone."""


class Filters(ABC):
    """Filters of the unique examples of a source: some are truncated, some are left out."""

    report: ClassVar[type[SourceReport]] = SourceReport
    """Class of the source's report."""

    @abstractmethod
    def apply(self, selection: Selection) -> Selection:
        """Truncate and leave out, with :meth:`Selection.truncate` and :meth:`Selection.filter`, which count it."""

    def arrange(self, selection: Selection, row_length: int | None = None) -> Selection:
        """Join or cut what :meth:`apply` has left, for rows of so many tokens; None for rows without an end."""
        return selection

    def problems(self, reports: Sequence[SourceReport]) -> list[str]:
        """Reasons why nothing can be learned from the kept documents of all sources, one line each."""
        return []


class Mixture(NamedTuple):
    """The documents of an epoch.

    Attributes:
        documents: All of them.
        reports: One per source.
        untrained: The examples of each source that its filters left nothing of.
    """

    documents: Documents
    reports: list[SourceReport]
    untrained: Sequence[Selection] = ()


def deduplicate(sources: Sequence[Source], tables: Sequence[Examples]) -> list[Selection]:
    """Number the examples of all sources, and keep the first of those with the same content.

    An example's number is its position among the unique examples of all sources, in order. No text is held.
    """
    sizes = [len(table) for table in tables]
    order, new = sort_hashes(np.concatenate([table.digests for table in tables]))
    first = np.zeros(len(order), dtype=bool)
    first[order] = new  # among equal ones the sort keeps the order
    numbers = np.cumsum(first) - 1
    bounds = np.cumsum([0, *sizes])
    selections = []
    for source, table, low, high in zip(sources, tables, bounds[:-1], bounds[1:], strict=True):
        selection = Selection(source, table, Spans.full(table, numbers[low:high]))
        selections.append(selection.filter(first[low:high], "duplicate"))
    return selections


def remove_shared(selections: Sequence[Selection], others: Sequence[Selection], cause: str) -> list[Selection]:
    """Leave out what is in the others too, so that no document, and no prompt, is both trained and validated on."""
    other_groups = np.concatenate([other.groups for other in others])
    kept = []
    for selection in selections:
        order, new = sort_hashes(np.concatenate([other_groups, selection.groups]))
        labels = np.zeros(len(order), dtype=np.int64)  # equal numbers for equal groups
        labels[order] = np.cumsum(new)
        kept.append(selection.filter(~np.isin(labels[len(other_groups) :], labels[: len(other_groups)]), cause))
    return kept


def hold_out(selections: Sequence[Selection], share: float) -> tuple[list[Selection], list[Selection]]:
    """Split into what is trained and what validates, by content: all pairs of a prompt land on the same side.

    Args:
        selections: Unique examples.
        share: Share to hold out, between 0 and 1. Chosen by hash, so the number comes out near it, not at it; but what
            comes first by hash is held out in any case.

    Raises:
        ValueError: Nothing is left to train on.
    """
    firsts = [selection.groups[:, 0].min() for selection in selections if len(selection.groups)]
    train, held = [], []
    for selection in selections:
        hashes = selection.groups[:, 0]  # uniform from 0 to 2**64
        chosen = (hashes < np.uint64(share * 2.0**64)) | (hashes == min(firsts, default=0))
        train.append(selection.filter(~chosen, "held out for validation"))
        once = replace(selection.source, fraction=min(selection.source.fraction, 1.0))
        held.append(replace(selection.filter(chosen, "used for training"), source=once))
    if not any(len(selection.spans.numbers) for selection in train):
        count = len(np.unique(np.concatenate([selection.groups[:, 0] for selection in selections])))
        raise ValueError(
            f"data.validation_share {share} leaves nothing to train on of {count} different examples or prompts; lower "
            "it (0 holds out none), or give data.validation sources"
        )
    return train, held


def mix(
    selections: Sequence[Selection],
    filters: Filters,
    row_length: int | None = None,
    make_documents: MakeDocuments = Documents,
) -> Mixture:
    """Filter every source, join and cut its trees, and repeat them, or its documents, as its fraction says.

    A pair that several sources have is used once, in the first of them.

    Args:
        selections: Unique examples of each source.
        filters: What is left out, truncated, joined and cut.
        row_length: Tokens that a tree is cut to; None cuts none.
        make_documents: Makes the documents of an epoch.

    Raises:
        ValueError: A source has no supervised token at all, or nothing is left; the message holds the counts.
    """
    repeated, reports, filtered, untrained = [], [], [], []
    for selection in selections:
        _refuse_if_untrainable(selection)
        kept, spans = filters.apply(selection), selection.spans
        filtered.append(kept)
        untrained.append(replace(selection, spans=spans.take(~np.isin(spans.numbers, kept.spans.numbers))))
    for selection in leave_out_repeated(filtered):
        once = filters.arrange(selection, row_length)
        order = repeats(len(once.spans.numbers), once.source)
        repeated.append(replace(once, spans=once.spans.take(order)))
        reports.append(filters.report.of(once, order))
    documents = make_documents(repeated)
    if len(documents) == 0:
        counts = " | ".join(map(str, reports))
        raise ValueError(f"the mixture is empty ({counts}); fix what leaves its {filters.report.noun} out")
    return Mixture(documents, reports, untrained)


def require_fitting(documents: Documents, row_length: int, fix: str = "lower data.max_length") -> None:
    """Make sure that every document fits a row.

    Args:
        documents: The documents.
        row_length: Tokens of a row.
        fix: What helps other than longer rows.

    Raises:
        ValueError: One does not; the message names it. Documents are cut to ``max_length``, so it is a pair or a group.
    """
    longest = int(documents.lengths.argmax())
    length, answers = int(documents.lengths[longest]), len(documents[longest].values)
    if length > row_length:
        what = {1: "answer", 2: "two answers"}.get(answers, f"{answers} answers, a group that is never cut,")
        too_long = int((documents.lengths > row_length).sum())
        raise ValueError(
            f"{documents.where(longest)}: the prompt and its {what} have {length} tokens, more than the {row_length} "
            f"of data.row_length ({too_long} of {len(documents)} are too long); set data.row_length to {length} or "
            f"more, or {fix}"
        )


def repeats(count: int, source: Source) -> Numbers:
    """Positions of a source's ``count`` documents, as often as its fraction says."""
    if count * source.fraction > MAX_DOCUMENTS:
        raise ValueError(
            f"source {source.label}: fraction {source.fraction:g} of {count} examples is {count * source.fraction:.0e} "
            f"of them, more than the {MAX_DOCUMENTS:.0e} that an epoch can hold; lower it, and train more epochs"
        )
    times, rest = divmod(max(source.fraction, 1.0), 1.0)
    extra = np.random.default_rng(source.seed).permutation(count)[: round(rest * count)]  # each at most once
    return np.concatenate([np.tile(np.arange(count), int(times)), np.sort(extra)])


def _refuse_if_untrainable(selection: Selection) -> None:
    table, name = selection.table, selection.source.label
    if len(table) == 0:
        causes = {"skipped by the transform": table.skipped_rows, **table.messages["left out"]}
        counts = "; ".join(f"{count} {cause}" for cause, count in causes.items() if count)
        raise ValueError(f"source {name}: no example is made of its {table.raw_rows} rows ({counts})")
    if not replace(selection, spans=Spans.full(table, np.arange(len(table)))).targets.any():
        raise ValueError(
            f"source {name}: no token of its {len(table)} examples is supervised, so it would train nothing; "
            "check `mask`, the chat template, and which column holds the answer"
        )
