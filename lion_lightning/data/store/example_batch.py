"""Examples that are read and encoded together; rows that cannot be are an error, or left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from lion_lightning.data.reports.bad_rows import leave_out
from lion_lightning.data.reports.row_messages import RowMessages, add_messages, collect_messages, collect_row_messages
from lion_lightning.data.sources.readers import Row
from lion_lightning.data.sources.source import Source
from lion_lightning.types import SampleSegment


class Encoder(Protocol):
    """Reads raw rows and tokenizes them: ``ChatEncoder`` for documents, ``TreeEncoder`` for answers."""

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str], /) -> Sequence[Any]:
        """Examples of a raw row, under the names that ``columns`` maps known columns to."""

    def encode_samples(self, examples: Sequence[Any], where: Sequence[str], /) -> Sequence[tuple[SampleSegment, ...]]:
        """The segments of each example: the first is the parent of all others."""

    def fingerprint(self) -> str:
        """Hash of everything that decides what the other two return."""


class _ReadRow(NamedTuple):
    row: Row
    source: Source
    examples: Sequence[Any]
    messages: RowMessages  # what reading it added, which counts once it is encoded


@dataclass
class ExampleBatch:
    """Examples that are encoded together, and the number of rows that they were made of.

    Attributes:
        rows: Raw rows read.
        skipped: How many of them a transform turned into no example.
        where: Place of the row of each example.
        examples: The examples.
        bad: Lines about rows that were left out, from :func:`~lion_lightning.data.reports.bad_rows.leave_out`.
    """

    rows: int = 0
    skipped: int = 0
    where: list[str] = field(default_factory=list)
    examples: list[Any] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    _read: list[_ReadRow] = field(default_factory=list)

    def read(self, row: Row, source: Source, encoder: Encoder) -> None:
        """Add the examples of a raw row.

        Raises:
            ValueError: It cannot be read, and is not to be left out; the message starts with its file and line.
        """
        self.rows += 1
        try:
            with collect_messages() as counted, collect_row_messages() as messages:
                examples = source.examples(row, encoder.read)
        except ValueError as error:
            self._leave_out(row, source, error)
            return
        self.skipped += not examples and "left out" not in messages  # by the transform
        self._add(_ReadRow(row, source, examples, counted))

    def encode(self, encoder: Encoder) -> list[tuple[SampleSegment, ...]]:
        """The samples of the examples. Rows that give none and may be left out are taken out of the batch.

        Raises:
            ValueError: An example cannot be encoded; the message starts with its file and line.
        """
        try:
            with collect_messages() as messages:
                samples = [*encoder.encode_samples(self.examples, self.where)] if self.examples else []
        except ValueError:
            if all(read.source.on_bad_row == "error" for read in self._read):
                raise
            return self._encode_by_row(encoder)
        for counted in (messages, *(read.messages for read in self._read)):
            add_messages(counted)
        return samples

    def _encode_by_row(self, encoder: Encoder) -> list[tuple[SampleSegment, ...]]:
        """Encode the examples of one row at a time, to find out which cannot be."""
        rows, self._read, self.where, self.examples = self._read, [], [], []
        samples: list[tuple[SampleSegment, ...]] = []
        for read in rows:
            try:
                with collect_messages() as messages:
                    if read.examples:
                        samples += encoder.encode_samples(read.examples, [read.row.where] * len(read.examples))
            except ValueError as error:
                self._leave_out(read.row, read.source, error)
            else:
                add_messages(messages)
                add_messages(read.messages)
                self._add(read)
        return samples

    def _add(self, read: _ReadRow) -> None:
        self._read.append(read)
        self.where += [read.row.where] * len(read.examples)
        self.examples += read.examples

    def _leave_out(self, row: Row, source: Source, error: ValueError) -> None:
        if source.on_bad_row == "error":
            raise error
        self.bad.append(leave_out(row, error))
