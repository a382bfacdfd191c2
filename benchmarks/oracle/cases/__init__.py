"""Cases to compare: an objective, our settings for it, and the other side's."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.oracle.cases.case import Case
from benchmarks.oracle.cases.groups import of_groups
from benchmarks.oracle.cases.others import of_answers, of_documents
from benchmarks.oracle.cases.pairs import of_pairs


def cases() -> Iterator[Case]:
    """All cases."""
    yield from of_documents()
    yield from of_pairs()
    yield from of_answers()
    yield from of_groups()
