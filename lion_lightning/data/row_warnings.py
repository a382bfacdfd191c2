"""What was noticed about single rows, counted instead of logged: a set of a million rows gives one line a kind.

Whoever reads a row calls :func:`warn_of_row`, however deep in the reading it is; whoever reads many collects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_counts: ContextVar[Counter[str] | None] = ContextVar("row_warnings", default=None)


def warn_of_row(text: str) -> None:
    """Count something that is not done as a row asks, with the fix.

    Args:
        text: The same for all rows of the kind, so that they are counted together: no place and no content in it.
    """
    counts = _counts.get()
    if counts is not None:
        counts[text] += 1


@contextmanager
def row_warnings() -> Iterator[Counter[str]]:
    """Collect what is warned of inside, by its text; what nobody collects is not kept."""
    counts: Counter[str] = Counter()
    token = _counts.set(counts)
    try:
        yield counts
    finally:
        _counts.reset(token)
