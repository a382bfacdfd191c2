"""Opened sources of a stream, with what encodes and mixes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from lion_lightning.cache import cache_folder, hash_json
from lion_lightning.data.document_filters.base import DocumentFilter
from lion_lightning.data.reports.source_report import SourceReport
from lion_lightning.data.selection.documents import Documents, Selection
from lion_lightning.data.selection.mixture import Filters, MakeDocuments, Mixture
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.example_batch import Encoder
from lion_lightning.data.streaming.encoding import BlockEncoder, FailedBlock, Request
from lion_lightning.data.streaming.reading import Place, RawBlock, SourceReader
from lion_lightning.data.streaming.settings import StreamSettings

_HEAD_BLOCKS = 4


@dataclass(frozen=True)
class StreamedSources:
    """Sources that are read while training.

    Attributes:
        readers: Where each is read from.
        encoder: Encodes blocks of their rows; it holds the sources.
        settings: Window, mixture, duplicates.
        cache_dir: Folder of caches, where bad rows are written.
        make_documents: Makes the documents of selections.
    """

    readers: Sequence[SourceReader]
    encoder: BlockEncoder
    settings: StreamSettings
    cache_dir: str | Path | None = None
    make_documents: MakeDocuments = Documents

    @classmethod
    def open(
        cls,
        sources: Sequence[Source],
        encoder: Encoder,
        filters: Filters,
        settings: StreamSettings,
        validated: Iterable[Selection] = (),
        cache_dir: str | Path | None = None,
        document_filters: Sequence[DocumentFilter] = (),
        make_documents: MakeDocuments = Documents,
    ) -> StreamedSources:
        """Find the sources' files; no row is read.

        Args:
            sources: The sources.
            encoder: How to read, tokenize and mask their rows.
            filters: Filters of the documents.
            settings: Window, mixture, duplicates.
            validated: Examples that are validated on; what shares a prompt with one of them is left out.
            cache_dir: Folder of caches; None for the default.
            document_filters: Rules that leave out documents by what they say.
            make_documents: Makes the documents of selections.

        Raises:
            ValueError: A source is not there.
        """
        readers = [SourceReader.of(source) for source in sources]
        groups = frozenset(group.tobytes() for group in chain.from_iterable(one.groups for one in validated))
        blocks = BlockEncoder(sources, encoder, filters, groups, document_filters)
        return cls(readers, blocks, settings, cache_dir, make_documents)

    @property
    def sources(self) -> Sequence[Source]:
        """The sources."""
        return self.encoder.sources

    def bad_rows(self) -> list[Path]:
        """A file for the bad rows of each source."""
        names = [hash_json(source.description()) for source in self.sources]
        return [cache_folder("bad_rows", self.cache_dir) / f"stream_{name}.jsonl" for name in names]

    def describe(self) -> list[str]:
        """Sources and settings, a line each, for the log."""
        weights = [source.weight or 1.0 for source in self.sources]
        lines = []
        for source, reader, weight in zip(self.sources, self.readers, weights, strict=True):
            share = f", {weight / sum(weights):.1%} of the {self.settings.mix_by}" if len(weights) > 1 else ""
            lines.append(f"{source.label}: streamed from {reader.describe()}{share}")
        window = f"{self.settings.window:,} documents are shuffled and packed together (data.stream.window)"
        return [*lines, window, self.settings.duplicates()]

    def head(self, row_length: int) -> Mixture:
        """The documents of the first rows of each source, to be looked at; duplicates stay in.

        Args:
            row_length: Tokens of a row, for trees that are longer.

        Raises:
            ValueError: A row is wrong, or no first row gives a document.
        """
        selections = []
        for number, (source, reader) in enumerate(zip(self.sources, self.readers, strict=True)):
            blocks = islice(reader.blocks(Place()), _HEAD_BLOCKS)
            rows = list(chain.from_iterable(block.rows for block in blocks))
            encoded = self.encoder[Request(number, RawBlock(rows, Place()))]
            if isinstance(encoded, FailedBlock):
                raise ValueError(encoded.error)
            selections.append(self.encoder.filters.arrange(encoded.selection(source), row_length))
        left = [selection for selection in selections if len(selection.spans.numbers)]
        report = self.encoder.filters.report
        reports = [report.of(selection, np.arange(len(selection.spans.numbers))) for selection in selections]
        if not left:
            raise ValueError(f"the first rows of all streamed sources give nothing to train on ({reports[0]})")
        return Mixture(self.make_documents(left), reports)

    def identity(self) -> dict[str, Any]:
        """Files and code that decide the documents, by name, to tell others from them; settings apart."""
        return {
            **{f"files of source {number}": reader.fingerprint()[:12] for number, reader in enumerate(self.readers)},
            **{
                f"columns and transform of source {number}": hash_json(source.identity())[:12]
                for number, source in enumerate(self.sources)
            },
            "tokenizer, template and mask": self.encoder.encoder.fingerprint()[:12],
            "examples validated on": len(self.encoder.validated),
        }

    def warnings(self, reports: Sequence[SourceReport]) -> list[str]:
        """Warnings about the rows that were read so far."""
        lines = self.encoder.filters.problems(reports)
        tokenizer = getattr(self.encoder.encoder, "tokenizer", None)
        has_chat_template = getattr(tokenizer, "chat_template", None) is not None
        sources = {source.label: source for source in self.sources}
        for report in reports:
            source = sources[report.name]
            lines += source.warnings(report.messages, report.rows, has_chat_template)
            for name, own in source.columns.items():
                if name not in report.messages["mapped"]:
                    lines.append(
                        f"source {source.label}: columns maps {name} to {own!r}, which none of the first "
                        f"{report.rows:,} rows has; correct the name, or leave it out"
                    )
        return lines
