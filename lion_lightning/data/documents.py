"""Documents as spans of tokenised examples: what an epoch reads from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lion_lightning.data.readers import Numbers
from lion_lightning.data.sources import Source
from lion_lightning.data.tokenized import TokenTable
from lion_lightning.types import Sample

Choice = npt.NDArray[np.bool_]


class Tally(NamedTuple):
    """A number of documents and of tokens."""

    documents: int = 0
    tokens: int = 0

    def __str__(self) -> str:
        """Both numbers."""
        return f"{self.documents:,} ({self.tokens:,} tokens)"


class Spans(NamedTuple):
    """Documents as parts of examples, ascending by example; one entry a document.

    Attributes:
        rows: Row of the example in its token table.
        starts: First token.
        stops: One past the last token.
        numbers: Stable number of the example.
    """

    rows: Numbers
    starts: Numbers
    stops: Numbers
    numbers: Numbers

    @property
    def lengths(self) -> Numbers:
        """Tokens of each document."""
        return self.stops - self.starts

    @property
    def tally(self) -> Tally:
        """How many there are."""
        return Tally(len(self.rows), int(self.lengths.sum()))

    def take(self, which: Numbers | Choice) -> Spans:
        """The documents at these positions."""
        return Spans(*(values[which] for values in self))


@dataclass(frozen=True)
class Selection:
    """The examples of one source that go on to the next step, and what the steps before left out.

    Attributes:
        source: Where they come from.
        table: Their tokens.
        spans: The examples left.
        lost: Documents and tokens left out, by cause.
    """

    source: Source
    table: TokenTable
    spans: Spans
    lost: dict[str, Tally] = field(default_factory=dict)

    def only(self, keep: Choice, cause: str) -> Selection:
        """Leave out what is not kept, and account for it."""
        lost = self.spans.take(~keep).tally
        causes = self.lost | {cause: lost} if lost.documents else self.lost
        return replace(self, spans=self.spans.take(keep), lost=causes)

    @property
    def digests(self) -> npt.NDArray[np.uint64]:
        """``(documents, 2)`` content hash of each example left."""
        return self.table.digests[self.spans.rows]


class Documents:
    """The documents of an epoch: random access, with nothing in memory but a few numbers a document.

    Args:
        selections: The sources' final selections; their ``spans`` are the documents.

    Attributes:
        lengths: ``(documents,)`` tokens of each.
        bounds: First and last-plus-one position of each source's documents.
    """

    def __init__(self, selections: Sequence[Selection]) -> None:
        """Lay the sources' documents one after the other."""
        self._tables = [selection.table for selection in selections]
        self._names = [selection.source.label for selection in selections]
        sizes = [len(selection.spans.rows) for selection in selections]
        self.bounds = list(pairwise(np.cumsum([0, *sizes]).tolist()))
        self._origins = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        columns = zip(*(selection.spans for selection in selections), strict=True)
        self._spans = Spans(*(np.concatenate(column) for column in columns))
        self.lengths = self._spans.lengths

    def __len__(self) -> int:
        """Number of documents."""
        return len(self._origins)

    def __getitem__(self, position: int) -> Sample:
        """Read one document."""
        origin = int(self._origins[position])
        row, start, stop, number = (int(values[position]) for values in self._spans)
        return Sample((self._tables[origin].piece(row, start, stop),), number, self._names[origin])

    def where(self, position: int) -> str:
        """Place of the raw row that a document was made from."""
        return self._tables[int(self._origins[position])].where(int(self._spans.rows[position]))
