"""Opened sources of a stream, with what encodes and mixes them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lion_lightning.data.reports.source_report import SourceReport
from lion_lightning.data.selection.documents import Selection
from lion_lightning.data.selection.mixture import Filters
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.example_batch import Encoder
from lion_lightning.data.streaming.encoding import BlockEncoder
from lion_lightning.data.streaming.reading import SourceReader
from lion_lightning.data.streaming.settings import StreamSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamedSources:
    """Sources that are read while training.

    Attributes:
        readers: Where each is read from.
        encoder: Encodes blocks of their rows; it holds the sources.
        settings: Window, mixture, duplicates.
    """

    readers: Sequence[SourceReader]
    encoder: BlockEncoder
    settings: StreamSettings

    @classmethod
    def open(
        cls,
        sources: Sequence[Source],
        encoder: Encoder,
        filters: Filters,
        settings: StreamSettings,
        validated: Iterable[Selection] = (),
    ) -> StreamedSources:
        """Find the sources' files; no row is read.

        Args:
            sources: The sources.
            encoder: How to read, tokenize and mask their rows.
            filters: Filters of the documents.
            settings: Window, mixture, duplicates.
            validated: Examples that are validated on; what shares a prompt with one of them is left out.

        Raises:
            ValueError: A source is not there.
        """
        readers = [SourceReader.of(source) for source in sources]
        groups = frozenset(group.tobytes() for selection in validated for group in selection.groups)
        return cls(readers, BlockEncoder(sources, encoder, filters, groups), settings)

    @property
    def sources(self) -> Sequence[Source]:
        """The sources."""
        return self.encoder.sources

    def describe(self) -> list[str]:
        """What is read and how, a line each, for the log."""
        weights = [source.weight or 1.0 for source in self.sources]
        lines = []
        for source, reader, weight in zip(self.sources, self.readers, weights, strict=True):
            share = f", {weight / sum(weights):.1%} of the {self.settings.mix_by}" if len(weights) > 1 else ""
            lines.append(f"{source.label}: streamed from {reader.describe()}{share}")
        window = f"{self.settings.window:,} documents are shuffled and packed together (data.stream.window)"
        return [*lines, window, self.settings.duplicates()]

    def identity(self) -> dict[str, Any]:
        """What decides the documents beyond the sources' settings, by name, to tell other files or code from these."""
        names = [source.label for source in self.sources]
        files = dict(zip(names, (reader.fingerprint()[:12] for reader in self.readers), strict=True))
        return {
            **{f"files of {name}": found for name, found in files.items()},
            "tokenizer, template and mask": self.encoder.encoder.fingerprint()[:12],
            "examples validated on": len(self.encoder.validated),
        }

    def warnings(self, reports: Sequence[SourceReport]) -> list[str]:
        """Warnings about the rows that were read so far.

        Args:
            reports: Counts of the sources.
        """
        lines = []
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
