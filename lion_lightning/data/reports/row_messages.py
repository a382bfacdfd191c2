"""What was found in single rows, counted instead of logged: a set of a million rows gives one line a kind.

Whoever reads a row notes it, however deep in the reading it is; whoever reads many collects.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

logger = logging.getLogger(__name__)

Kind = Literal["warning", "left out", "plain text", "unused", "kept", "mapped"]
"""Something not done as a row asks; why a row gave no example; that it is plain text; a column that nothing was made
of; one that only judges see; a known name that ``columns`` brought."""


class RowMessages(dict[Kind, Counter[str]]):
    """Counts by kind and text."""

    def __missing__(self, kind: Kind) -> Counter[str]:
        """A kind of which nothing was noted."""
        return Counter()

    @classmethod
    def of(cls, counts: Mapping[Kind, Mapping[str, int]]) -> RowMessages:
        """Notes of plain data, as JSON gives it."""
        return cls({kind: Counter(texts) for kind, texts in counts.items()})

    def add(self, other: Mapping[Kind, Mapping[str, int]]) -> None:
        """Count another's too."""
        for kind, texts in other.items():
            self.setdefault(kind, Counter()).update(texts)

    def listed(self, kind: Kind, rows: int) -> str:
        """Texts of a kind on one line, each with its number of rows where that is not all of them."""
        found = sorted(self[kind].items(), key=lambda item: (-item[1], item[0]))
        names = [text if count == rows else f"{text} ({count:,} of {rows:,} rows)" for text, count in found]
        more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
        return ", ".join(names[:_MOST_SHOWN]) + more


_MOST_TEXTS = 1000  # of a kind: rows can have a key of their own each
_MOST_SHOWN = 20
_present: ContextVar[RowMessages | None] = ContextVar("row_notes", default=None)


def add_message(kind: Kind, text: str = "") -> None:
    """Count something about the present row; what nobody collects is not kept.

    Args:
        kind: What sort of thing.
        text: The same for all rows that are counted together: no place and no content in it.
    """
    if (notes := _present.get()) is None:
        return
    texts = notes.setdefault(kind, Counter())
    texts[text if text in texts or len(texts) < _MOST_TEXTS else "others"] += 1


def add_warning(text: str) -> None:
    """Count something that is not done as a row asks, with the fix.

    Args:
        text: The same for all rows of the kind, so that they are counted together: no place and no content in it.
    """
    add_message("warning", text)


@contextmanager
def collect_messages() -> Iterator[RowMessages]:
    """Collect what is noted inside."""
    notes = RowMessages()
    token = _present.set(notes)
    try:
        yield notes
    finally:
        _present.reset(token)


@contextmanager
def collect_row_messages() -> Iterator[RowMessages]:
    """Read one row inside: whatever is noted in it several times counts once."""
    with collect_messages() as notes:
        yield notes
    for kind, texts in notes.items():
        for text in texts:
            add_message(kind, text)


@contextmanager
def log_warnings_once(warned: set[str], what: str) -> Iterator[None]:
    """Log what is warned of inside, each text once, for whoever reads the same rows again and again.

    Args:
        warned: The texts that were logged before; grows.
        what: What the rows are, before each text.
    """
    with collect_messages() as notes:
        yield
    for text in notes["warning"].keys() - warned:
        logger.warning("%s: %s", what, text)
        warned.add(text)
