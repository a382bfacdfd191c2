"""Messages about single rows, counted instead of logged: a set of a million rows gives one line per kind.

Code that reads a row adds messages, however deep in the reading it is; code that reads many rows collects them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal

logger = logging.getLogger(__name__)

Kind = Literal["warning", "left out", "bad row", "changed", "form", "plain text", "unused", "kept", "mapped"]
"""Something that is not done as a row asks; why a row gave no example; why a row cannot be used; what is read otherwise
than it stands; a row's form and the columns that were read; a row of plain text; a column that was not used; a column
that only judges see; a known column that ``columns`` named."""

_MAX_TEXTS = 1000  # per kind: each row can have another key
_MAX_LISTED = 20


class RowMessages(dict[Kind, Counter[str]]):
    """Number of rows by kind of message and text.

    Attributes:
        bad_rows: The file that holds the rows that could not be used, if there are any.
    """

    bad_rows: Path | None = None

    def __missing__(self, kind: Kind) -> Counter[str]:
        """An empty count for a kind without messages."""
        return Counter()

    @classmethod
    def of(cls, counts: Mapping[Kind, Mapping[str, int]]) -> RowMessages:
        """Messages from plain data, as JSON gives it."""
        return cls({kind: Counter(texts) for kind, texts in counts.items()})

    def add(self, other: Mapping[Kind, Mapping[str, int]]) -> None:
        """Add other counts to these; beyond a thousand texts of a kind as ``others``."""
        for kind, texts in other.items():
            own = self.setdefault(kind, Counter())
            for text, count in texts.items():
                own[text if text in own or len(own) < _MAX_TEXTS else "others"] += count

    def listed(self, kind: Kind, rows: int) -> str:
        """Texts of a kind on one line, each with its number of rows where that is not all of them."""
        # the most frequent first, then by name, so that the line does not depend on the order of the rows
        found = sorted(self[kind].items(), key=lambda item: (-item[1], item[0]))
        names = [text if count == rows else f"{text} ({count:,} of {rows:,} rows)" for text, count in found]
        more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
        return ", ".join(names[:_MAX_LISTED]) + more

    def describe(self, rows: int) -> list[str]:
        """One line per finding about so many rows, for reports; warnings were logged when the rows were read."""
        lines = [f"rows left out, {cause}: {count:,}" for cause, count in self["left out"].items()]
        lines += [f"bad rows left out, {cause}: {count:,}" for cause, count in self["bad row"].most_common(_MAX_LISTED)]
        if self.bad_rows:
            lines.append(f"the bad rows are in {self.bad_rows}")
        lines += [f"{change}: {count:,} rows" for change, count in self["changed"].items()]
        if plain := self["plain text"].total():
            lines.append(f"plain text, without a chat template: {plain:,} rows")
        if unused := self.listed("unused", rows):
            lines.append(f"not used: {unused}")
        if kept := self.listed("kept", rows):
            lines.append(f"kept for judges: {kept}")
        return lines


_present: ContextVar[RowMessages | None] = ContextVar("row_messages", default=None)


def add_message(kind: Kind, text: str = "") -> None:
    """Count something about the present row; outside of :func:`collect_messages` it is dropped.

    Args:
        kind: Kind of message.
        text: The same for all rows that are counted together, so without a row's path or content.
    """
    if (messages := _present.get()) is None:
        return
    texts = messages.get(kind)
    if texts is None:
        texts = messages[kind] = Counter()
    texts[text if text in texts or len(texts) < _MAX_TEXTS else "others"] += 1


def add_messages(messages: RowMessages) -> None:
    """Count messages that another :func:`collect_messages` collected."""
    if (present := _present.get()) is not None:
        present.add(messages)


def add_warning(text: str) -> None:
    """Count a warning and its fix, without a row's path or content, about what is not done as a row asks."""
    add_message("warning", text)


@contextmanager
def collect_messages() -> Iterator[RowMessages]:
    """Collect the messages that are added inside."""
    messages = RowMessages()
    token = _present.set(messages)
    try:
        yield messages
    finally:
        _present.reset(token)


@contextmanager
def collect_row_messages() -> Iterator[RowMessages]:
    """Read one row inside: a message that is added several times counts once."""
    with collect_messages() as messages:
        yield messages
    for kind, texts in messages.items():
        for text in texts:
            add_message(kind, text)


@contextmanager
def log_warnings_once(logged: set[str], what: str) -> Iterator[None]:
    """Log the warnings that are added inside, each text once, for code that reads the same rows again and again.

    Args:
        logged: The texts that were logged before; grows.
        what: Name of the rows, put before each text.
    """
    with collect_messages() as messages:
        yield
    for text in messages["warning"].keys() - logged:
        logger.warning("%s: %s", what, text)
        logged.add(text)
