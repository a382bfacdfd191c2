"""Documents of several streamed sources, interleaved by their weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lion_lightning.cache import explain_write_errors
from lion_lightning.data.packing.best_fit import Span
from lion_lightning.data.packing.loader import cut, set_epoch
from lion_lightning.data.reports.bad_rows import refuse_mostly_bad
from lion_lightning.data.reports.source_report import SourceReport
from lion_lightning.data.selection.documents import Documents, Selection
from lion_lightning.data.selection.mixture import require_fitting
from lion_lightning.data.sources.source import Source
from lion_lightning.data.streaming.duplicates import RecentHashes
from lion_lightning.data.streaming.encoding import EncodedBlock
from lion_lightning.data.streaming.feed import BlockFeed
from lion_lightning.data.streaming.reading import Place
from lion_lightning.data.streaming.streamed import StreamedSources
from lion_lightning.types import Sample

logger = logging.getLogger(__name__)

HOPELESS_ROWS = 20_000
"""A source that gives no document in so many rows is wrong."""
_JUDGED_ROWS = 1024  # from so many on a source with mostly bad rows is refused


class Drawn(NamedTuple):
    """A document of the mixture; its tokens are read when a row with it is made."""

    documents: Documents
    position: int
    length: int

    def sample(self, span: Span) -> Sample:
        """Its part of a row."""
        return cut(self.documents[self.position], span)


@dataclass
class Cursor:
    """Where the mixture stands in one source; plain data but for the block and the report.

    Attributes:
        place: Where the open block begins, or the next one where none is open.
        taken: Documents drawn from the open block.
        repeated: Examples of it that were left out as duplicates, when it was opened.
        examples: Examples of the source before the block.
        documents: Documents drawn so far.
        tokens: Their tokens.
        is_open: Whether a block is open.
        ended: Whether the source has ended.
        report: Counts of the source, of all blocks that were opened.
        block: The open block, unless it is still to be read again.
        block_documents: Its documents.
    """

    place: Place
    taken: int = 0
    repeated: tuple[int, ...] = ()
    examples: int = 0
    documents: int = 0
    tokens: int = 0
    is_open: bool = False
    ended: bool = False
    report: SourceReport | None = None
    block: EncodedBlock | None = None
    block_documents: Documents | None = None

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        names = ("taken", "examples", "documents", "tokens", "is_open", "ended")
        return {
            "place": asdict(self.place),
            "repeated": list(self.repeated),
            "report": json.dumps(self.report.state()) if self.report else "",
            **{name: getattr(self, name) for name in names},
        }

    @classmethod
    def of(cls, state: Mapping[str, Any], report: type[SourceReport]) -> Cursor:
        """The cursor of a state."""
        values = {**state, "place": Place(**state["place"]), "repeated": tuple(state["repeated"])}
        values["report"] = report.of_state(json.loads(state["report"])) if state["report"] else None
        return cls(**values)


class StreamMixture:
    """Draws documents: the next is of the source that is furthest behind its weight, in documents or tokens.

    So after any number of draws no source is further from its share than one document's tokens can take it. A source
    that ends leaves the mixture, and the others go on.

    Args:
        streamed: The sources, and what the weights share out.
        feed: Their encoded blocks, from where the cursors stand.
        cursors: Where to go on in each source.
        hashes: The contents of earlier documents.
        row_length: Tokens that every document has to fit in.
        writes: Whether this process writes the bad rows, and says that a source has ended.
        epoch: Epoch of documents that differ from epoch to epoch.
    """

    def __init__(
        self,
        streamed: StreamedSources,
        feed: BlockFeed,
        cursors: Sequence[Cursor],
        hashes: RecentHashes,
        row_length: int,
        writes: bool = True,
        epoch: int = 0,
    ) -> None:
        self.sources, self.cursors, self.hashes = streamed.sources, cursors, hashes
        self._mix_by, self._filters = streamed.settings.mix_by, streamed.encoder.filters
        self._feed, self._row_length, self._writes = feed, row_length, writes
        self._make_documents, self._epoch = streamed.make_documents, epoch
        self._bad_rows = streamed.bad_rows()
        self._weights = [source.weight or 1.0 for source in streamed.sources]

    def draw(self) -> Drawn | None:
        """The next document; None when all sources have ended.

        Raises:
            ValueError: A row is wrong, or a source gives no documents.
        """
        while left := [number for number, cursor in enumerate(self.cursors) if not cursor.ended]:
            number = min(left, key=self._progress)
            cursor, documents = self.cursors[number], self.cursors[number].block_documents
            if cursor.block is None:
                self._open(number)
            elif documents is not None and cursor.taken < len(documents):
                drawn = Drawn(documents, cursor.taken, int(documents.lengths[cursor.taken]))
                cursor.taken += 1
                cursor.documents += 1
                cursor.tokens += drawn.length
                return drawn
            else:  # the block is used up
                cursor.examples += sum(map(len, cursor.block.shard.batches))
                cursor.place = cursor.block.after
                cursor.taken, cursor.repeated, cursor.is_open = 0, (), False
                cursor.block = cursor.block_documents = None
        return None

    def state(self) -> dict[str, Any]:
        """Where all sources stand, as plain data."""
        return {"cursors": [cursor.state() for cursor in self.cursors], "hashes": self.hashes.count}

    def _progress(self, number: int) -> float:
        cursor = self.cursors[number]
        return (cursor.tokens if self._mix_by == "tokens" else cursor.documents) / self._weights[number]

    def _open(self, number: int) -> None:
        """Read the next block, or again the one that was open when the state was saved."""
        cursor = self.cursors[number]
        cursor.block = self._feed.take(number)
        if cursor.block is None:
            cursor.ended, cursor.is_open = True, False
            _refuse_if_untrainable(self.sources[number], cursor.report)
            self._tell_end(number)
            return
        selection = cursor.block.selection(self.sources[number])
        numbers = selection.spans.examples + cursor.examples
        selection = replace(selection, spans=selection.spans._replace(numbers=numbers))
        if not cursor.is_open:
            cursor.repeated = self._repeated(selection)
        fresh = ~np.isin(selection.spans.examples, cursor.repeated)
        selection = selection.filter(fresh, "duplicate")
        if len(selection.spans.numbers):
            selection = self._filters.arrange(selection, self._row_length)
        if not cursor.is_open:
            report = self._filters.report.of(selection, np.arange(len(selection.spans.numbers)))
            cursor.report = cursor.report.merged(report) if cursor.report else report
            self._check(cursor.report, cursor.block, self._bad_rows[number])
        cursor.is_open = True
        cursor.block_documents = self._make_documents([selection]) if len(selection.spans.numbers) else None
        if cursor.block_documents is not None:
            set_epoch(cursor.block_documents, self._epoch)
            require_fitting(cursor.block_documents, self._row_length)

    def _repeated(self, selection: Selection) -> tuple[int, ...]:
        """Examples of a block whose content was seen before."""
        digests = selection.table.digests[:, 0].tolist()
        rows = dict.fromkeys(selection.spans.examples.tolist())  # once each: one may be split into several documents
        return tuple(row for row in rows if not self.hashes.add(digests[row]))

    def _tell_end(self, number: int) -> None:
        left = [source.label for source, cursor in zip(self.sources, self.cursors, strict=True) if not cursor.ended]
        if left and self._writes:
            counts = f"{self.cursors[number].documents:,} documents, {self.cursors[number].tokens:,} tokens"
            logger.info("source %s has ended (%s); %s go on", self.sources[number].label, counts, ", ".join(left))

    def _check(self, report: SourceReport, block: EncodedBlock, bad_rows: Path) -> None:
        """Write the bad rows of a block, and refuse a source that gives nothing, or mostly bad rows."""
        if block.bad and self._writes:
            with explain_write_errors(bad_rows.parent, "bad rows"):
                bad_rows.parent.mkdir(parents=True, exist_ok=True)
                with bad_rows.open("a", encoding="utf-8") as file:
                    file.writelines(block.bad)
        if report.messages["bad row"]:
            report.messages.bad_rows = bad_rows
        if report.rows >= _JUDGED_ROWS:
            refuse_mostly_bad(report.name, report.messages, report.rows)
        if report.rows >= HOPELESS_ROWS and not report.supervised:
            raise ValueError(
                f"source {report.name}: none of its first {report.rows:,} rows gives anything to train on ({report}); "
                "fix what leaves them out"
            )


def _refuse_if_untrainable(source: Source, report: SourceReport | None) -> None:
    """Refuse a source that has ended and gave no example, or none with a target, as without streaming."""
    if report is None or not report.rows:
        fix = "have `iterable` begin anew at each call" if source.iterable else "name other files"
        raise ValueError(f"source {source.label}: it has no rows; {fix}, or leave this source out")
    if not report.read.documents:
        raise ValueError(f"source {source.label}: no example is made of its {report.rows:,} rows ({report})")
    untrained = report.left_out.get("no supervised token")
    if untrained is not None and untrained.documents == report.read.documents:
        raise ValueError(
            f"source {source.label}: no token of its {untrained.documents:,} examples is supervised, so it would train "
            "nothing; check `mask`, the chat template, and which column holds the answer"
        )
