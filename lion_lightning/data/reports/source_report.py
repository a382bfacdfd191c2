"""Report of each source: rows read, documents kept, truncated and left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from typing_extensions import override

from lion_lightning.data.reports.row_messages import RowMessages
from lion_lightning.data.selection.documents import Selection
from lion_lightning.data.selection.spans import FilterCounts
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
    """Name of a document, for reports."""

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
    def of(cls, once: Selection, order: Numbers, **more: int) -> Self:
        """Sum up.

        Args:
            once: What is left of a source.
            order: Positions of its documents in an epoch, those of repeated ones several times.
            **more: Further fields of a subclass.
        """
        table, spans = once.table, once.spans.take(order)
        unrepeated, kept = once.spans.counts, spans.counts
        return cls(
            name=once.source.label,
            rows=table.raw_rows,
            skipped=table.skipped_rows,
            read=FilterCounts(len(table), int(table.segment_lengths.sum())),
            left_out=once.left_out,
            truncated=once.truncated,
            split=once.split,
            repeated=FilterCounts(kept.documents - unrepeated.documents, kept.tokens - unrepeated.tokens),
            kept=kept,
            supervised=int(once.spans.totals(once.targets)[order].sum()),
            longest=table.longest,
            messages=table.messages,
            **more,
        )

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
        return {key: self._plain(inner) for key, inner in value.items()} if isinstance(value, dict) else value


@dataclass(frozen=True)
class PairReport(SourceReport):
    """Counts of one source of preference pairs.

    Attributes:
        prompts: Prompts of one epoch, as often as they are computed.
        answers: Answers, each once for all of its pairs.
        prompt: Tokens of the prompts, each counted once for all of its answers.
        chosen: Tokens of the preferred answers, each as often as it is preferred.
        rejected: Tokens of the others, in the same way.
    """

    noun: ClassVar[str] = "pairs"

    prompts: int
    answers: int
    prompt: int
    chosen: int
    rejected: int

    @classmethod
    @override
    def of(cls, once: Selection, order: Numbers, **more: int) -> Self:
        spans = once.spans.take(order)
        lengths, prompts = spans.segment_lengths, len(spans.numbers)
        chosen, rejected = lengths[spans.pair_segments].sum(axis=0, dtype=int).tolist()
        return super().of(
            once,
            order,
            prompts=prompts,
            answers=len(lengths) - prompts,
            prompt=int(lengths[spans.roots].sum(dtype=int)),
            chosen=chosen,
            rejected=rejected,
            **more,
        )

    @property
    def prompt_share(self) -> float:
        """Share of the kept tokens that is prompt."""
        return self.prompt / max(self.kept.tokens, 1)

    @property
    def mean_lengths(self) -> tuple[float, float]:
        """Tokens of a chosen and of a rejected answer, on average."""
        count = max(self.kept.documents, 1)  # filters may leave nothing
        return self.chosen / count, self.rejected / count

    @override
    def table_row(self) -> dict[str, str]:
        chosen, rejected = self.mean_lengths
        more = {
            "prompt share": f"{self.prompt_share:.1%}",
            "mean chosen": f"{chosen:,.1f}",
            "mean rejected": f"{rejected:,.1f}",
        }
        row = super().table_row()
        longest = row.pop("longest")
        return {**row, **more, "longest": longest}

    @override
    def summary(self) -> str:
        chosen, rejected = self.mean_lengths
        means = f"answers of {chosen:,.1f} (chosen) and {rejected:,.1f} (rejected) tokens on average"
        return f"{super().summary()}, {self.prompt_share:.1%} prompt, {means}"

    @override
    def to_dict(self) -> dict[str, Any]:
        chosen, rejected = self.mean_lengths
        means = {"mean_chosen": round(chosen, 1), "mean_rejected": round(rejected, 1)}
        return super().to_dict() | {"prompt_share": round(self.prompt_share, 4)} | means


def _sum(first: Any, second: Any) -> Any:
    """Both counts together: numbers, documents and tokens, or several of these by cause."""
    if isinstance(first, FilterCounts):
        return FilterCounts(*map(_sum, first, second))
    if isinstance(first, dict):
        causes = dict.fromkeys([*first, *second])
        return {cause: _sum(first.get(cause, FilterCounts()), second.get(cause, FilterCounts())) for cause in causes}
    return first + second
