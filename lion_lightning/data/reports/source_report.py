"""Report of each source: rows read, documents kept, truncated and left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from typing_extensions import override

from lion_lightning.data.reports.row_messages import RowMessages
from lion_lightning.data.selection.documents import Selection
from lion_lightning.data.selection.spans import FilterCounts, Spans, count_units
from lion_lightning.data.sources.readers import Numbers


@dataclass(frozen=True)
class SourceReport:
    """Counts of one source. ``read`` tokens = ``kept`` - ``repeated`` + all of ``truncated`` + all of ``left_out``.

    Attributes:
        name: The source's name.
        rows: Raw rows read.
        skipped: How many of them the transform skipped.
        read: Examples made of the rows.
        left_out: Documents left out, by cause.
        truncated: Documents truncated, and the tokens cut off them, by what was truncated.
        split: Documents split into several.
        repeated: The part of ``kept`` that a fraction above 1 adds.
        kept: Documents of one epoch.
        supervised: Tokens trained in one epoch.
        longest: Tokens of the longest sequence read: a document, or a prompt with one of its answers.
        messages: Counted messages about the rows.
    """

    noun: ClassVar[str] = "documents"
    """Name of what is counted."""
    kind: ClassVar[str] = "documents"
    """The form of the rows: a name of :data:`lion_lightning.tools.inspect.forms.FORMS`."""

    name: str
    rows: int
    skipped: int
    read: FilterCounts
    left_out: dict[str, FilterCounts]
    truncated: dict[str, FilterCounts]
    split: int
    repeated: FilterCounts
    kept: FilterCounts
    supervised: int
    longest: int
    messages: RowMessages

    @classmethod
    def of(cls, once: Selection, order: Numbers, **more: Any) -> Self:
        """Sum up.

        Args:
            once: What is left of a source.
            order: Positions of its documents in an epoch, those of repeated ones several times.
            **more: Further fields of a subclass.
        """
        table, spans = once.table, once.spans.take(order)
        unrepeated, kept = cls.counted(once.spans), cls.counted(spans)
        return cls(
            name=once.source.label,
            rows=table.raw_rows,
            skipped=table.skipped_rows,
            read=FilterCounts(
                count_units(len(table), len(table.segment_lengths), len(table.pairs)),
                int(table.segment_lengths.sum(dtype=int)),
            ),
            left_out=once.left_out,
            truncated=once.truncated,
            split=once.split,
            repeated=FilterCounts(kept.documents - unrepeated.documents, kept.tokens - unrepeated.tokens),
            kept=kept,
            supervised=int(once.spans.totals(cls.trained(once))[order].sum()),
            longest=table.longest,
            messages=table.messages,
            **more,
        )

    @classmethod
    def counted(cls, spans: Spans) -> FilterCounts:
        """How much there is of what the report counts."""
        return spans.counts

    @classmethod
    def trained(cls, selection: Selection) -> Numbers:
        """Trained tokens of each segment."""
        return selection.targets

    def merged(self, other: Self) -> Self:
        """The counts of both, of other rows of the same source."""
        names = [field.name for field in fields(self) if field.name not in ("name", "longest", "messages")]
        sums = {name: _sum(getattr(self, name), getattr(other, name)) for name in names}
        messages = RowMessages.of(self.messages)
        messages.add(other.messages)
        messages.bad_rows = other.messages.bad_rows or self.messages.bad_rows
        return replace(self, **sums, longest=max(self.longest, other.longest), messages=messages)

    def state(self) -> dict[str, Any]:
        """All counts, as plain data for JSON; see :meth:`of_state`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Self:
        """The report of a state that was written as JSON and read back."""
        # JSON has lists in place of named tuples
        values: dict[str, Any] = {
            name: FilterCounts(*value) if isinstance(value, list) else value for name, value in state.items()
        }
        for name in ("left_out", "truncated"):
            values[name] = {cause: FilterCounts(*counts) for cause, counts in state[name].items()}
        return cls(**{**values, "messages": RowMessages.of(state["messages"])})

    @property
    def supervised_share(self) -> float:
        """Share of the kept tokens that is trained."""
        return self.supervised / max(self.kept.tokens, 1)

    def table_row(self) -> dict[str, str]:
        """The columns of a table, with this source's cells."""
        return {
            "source": self.name,
            "rows": f"{self.rows:,}",
            self.noun: f"{self.kept.documents:,}",
            "tokens": f"{self.kept.tokens:,}",
            "supervised": f"{self.supervised_share:.1%}",
            "longest": f"{self.longest:,}",
        }

    def summary(self) -> str:
        """Counts of the kept documents, for logs."""
        return (
            f"{self.kept.documents:,} {self.noun}, {self.kept.tokens:,} tokens, {self.supervised_share:.1%} supervised"
        )

    @override
    def __str__(self) -> str:
        return "; ".join([f"{self.name}: {self.summary()}", *self.changes()])

    def changes(self) -> list[str]:
        """Differences between the rows and the kept documents, one per line."""
        lines = [f"left out, {cause}: {counts}" for cause, counts in self.left_out.items()]
        if self.skipped:
            lines.append(f"rows skipped by the transform: {self.skipped:,}")
        lines += [
            f"{what}: {counts.documents:,} (by {counts.tokens:,} tokens)" for what, counts in self.truncated.items()
        ]
        if self.split:
            lines.append(f"split: {self.split:,}")
        if self.repeated.documents:
            lines.append(f"repeated: {self.repeated}")
        return lines + self.messages.describe(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, for YAML and JSON."""
        values = {field.name: self._plain(getattr(self, field.name)) for field in fields(self)}
        return values | {"supervised_share": round(self.supervised_share, 4)}

    def _plain(self, value: Any) -> Any:
        if isinstance(value, FilterCounts):
            return {self.noun: value.documents, "tokens": value.tokens}
        if isinstance(value, tuple):
            return value._asdict()  # type: ignore[attr-defined]
        return {key: self._plain(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _sum(first: Any, second: Any) -> Any:
    """Both counts together: numbers, documents and tokens, or several of these by cause."""
    if isinstance(first, tuple):
        return type(first)(*map(_sum, first, second))
    if isinstance(first, dict):
        causes = dict.fromkeys([*first, *second])
        return {cause: _sum(first.get(cause, FilterCounts()), second.get(cause, FilterCounts())) for cause in causes}
    return first + second
