"""From raw blocks to filtered documents, in worker processes or in this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset
from typing_extensions import override

from lion_lightning.data.document_filters.applied import leave_out
from lion_lightning.data.document_filters.base import DocumentFilter
from lion_lightning.data.document_filters.candidates import Candidates
from lion_lightning.data.reports.row_messages import collect_messages
from lion_lightning.data.selection.documents import Selection
from lion_lightning.data.selection.mixture import Filters
from lion_lightning.data.selection.spans import FilterCounts, Spans
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.example_batch import Encoder, ExampleBatch
from lion_lightning.data.store.shards import Shard
from lion_lightning.data.store.tokenize import record_batch
from lion_lightning.data.store.tokenized import TokenBatches
from lion_lightning.data.streaming.reading import Line, Place, RawBlock


class Request(NamedTuple):
    """A block to encode.

    Attributes:
        source: Number of its source.
        block: Its rows; None where they could not be read.
        error: Why.
    """

    source: int
    block: RawBlock | None
    error: str = ""


class FailedBlock(NamedTuple):
    """A block that cannot be read or encoded, with the error's message."""

    source: int
    error: str


class EncodedBlock(NamedTuple):
    """The documents of a block, without those that filters leave out; plain data, which travels between processes.

    Attributes:
        source: Number of its source.
        after: Where the source goes on behind it.
        shard: The tokens of all of its examples, and counts of its rows.
        spans: The documents.
        left_out: Documents and tokens left out, by cause.
        truncated: The same of truncated ones.
        split: Documents split into several.
        bad: Lines about rows that cannot be used and were left out.
    """

    source: int
    after: Place
    shard: Shard
    spans: Spans
    left_out: dict[str, FilterCounts]
    truncated: dict[str, FilterCounts]
    split: int
    bad: list[str]

    def selection(self, source: Source) -> Selection:
        """The documents."""
        return Selection(source, TokenBatches([self.shard]), self.spans, self.left_out, self.truncated, self.split)


@dataclass(frozen=True)
class BlockEncoder(Dataset[EncodedBlock | FailedBlock]):
    """Reads the rows of blocks, tokenizes and filters them. Errors travel as text, to be raised when their turn comes.

    Attributes:
        sources: All sources.
        encoder: How to read, tokenize and mask rows.
        filters: Filters of the documents.
        validated: Hashes of the groups (prompts) that are validated on, which are left out.
        document_filters: Rules that leave out documents by what they say.
    """

    sources: Sequence[Source]
    encoder: Encoder
    filters: Filters
    validated: frozenset[bytes] = frozenset()
    document_filters: Sequence[DocumentFilter] = ()

    @override
    def __getitem__(self, request: Request) -> EncodedBlock | FailedBlock:
        if request.block is None:
            return FailedBlock(request.source, request.error)
        try:
            return self._encoded(request.source, request.block)
        except (ValueError, OSError) as error:
            return FailedBlock(request.source, str(error))

    def _encoded(self, number: int, block: RawBlock) -> EncodedBlock:
        source, batch = self.sources[number], ExampleBatch()
        with collect_messages() as messages:
            for row in block.rows:
                batch.read(row.parse() if isinstance(row, Line) else row, source, self.encoder)
            encoded = record_batch(batch, self.encoder)
        batches = [encoded] if len(encoded) else []
        shard = Shard(batch.rows, batch.skipped, batches, "", messages)
        table = TokenBatches([shard])
        selection = Selection(source, table, Spans.full(table, np.arange(len(table))))
        if batches:
            fresh = np.array([group.tobytes() not in self.validated for group in selection.groups], bool)
            selection = selection.filter(fresh, "in a validation source")
            for rule in self.document_filters:
                if candidates := Candidates.of_block(selection, batch.examples):
                    selection = leave_out(selection, rule.leave_out(candidates))
            selection = self.filters.apply(selection)
        return EncodedBlock(
            number,
            block.after,
            shard,
            selection.spans,
            selection.left_out,
            selection.truncated,
            selection.split,
            batch.bad,
        )
