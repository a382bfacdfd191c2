"""Reports of sources of prompts with answers: pairs, labeled answers, groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from typing_extensions import override

from lion_lightning.data.reports.source_report import SourceReport
from lion_lightning.data.selection.documents import Regrouped, Selection
from lion_lightning.data.selection.spans import Choice, FilterCounts, Spans
from lion_lightning.data.sources.readers import Numbers


@dataclass(frozen=True)
class TreeReport(SourceReport):
    """Counts of one source of prompts with answers.

    ``read`` tokens = ``kept`` - ``repeated`` + ``truncated`` + ``left_out`` + those of ``joined`` - those of ``cut``.

    Attributes:
        prompts: Prompts of one epoch, as often as they are computed: one for each tree.
        answers: Answers of one epoch, each once for all that it is compared with.
        prompt: Tokens of the prompts.
        joined: Trees of one prompt that became one.
        cut: Trees longer than a row that became several.
    """

    prompts: int
    answers: int
    prompt: int
    joined: Regrouped
    cut: Regrouped

    @classmethod
    @override
    def of(cls, once: Selection, order: Numbers, **more: Any) -> Self:
        spans = once.spans.take(order)
        more |= cls.lengths(spans)
        return super().of(
            once,
            order,
            prompts=len(spans.numbers),
            answers=len(spans.rows) - len(spans.numbers),
            prompt=int(spans.segment_lengths[spans.roots].sum(dtype=int)),
            joined=once.joined,
            cut=once.cut,
            **more,
        )

    @classmethod
    def lengths(cls, spans: Spans) -> dict[str, Any]:
        """Further fields of a subclass, of the documents of an epoch."""
        return {}

    @classmethod
    @override
    def of_state(cls, state: Mapping[str, Any]) -> Self:
        changes = {name: Regrouped(*state[name]) for name in ("joined", "cut")}
        return super().of_state({**state, **changes})

    @property
    def prompt_share(self) -> float:
        """Share of the kept tokens that is prompt."""
        return self.prompt / max(self.kept.tokens, 1)

    def means(self) -> dict[str, float]:
        """Mean tokens of answers, by kind."""
        return {"answer": (self.kept.tokens - self.prompt) / max(self.answers, 1)}

    def units(self) -> str:
        """Counts of the kept answers and prompts, in words."""
        return f"{self.answers:,} answers to {self.prompts:,} prompts"

    def columns(self) -> dict[str, int]:
        """Further counts, by the names of their columns in a table."""
        return {"prompts": self.prompts}

    @override
    def table_row(self) -> dict[str, str]:
        row = super().table_row()
        longest = row.pop("longest")
        counts = {name: f"{count:,}" for name, count in self.columns().items()}
        means = {f"mean {kind}": f"{mean:,.1f}" for kind, mean in self.means().items()}
        return {**row, **counts, "prompt share": f"{self.prompt_share:.1%}", **means, "longest": longest}

    @override
    def summary(self) -> str:
        lengths = self.means()
        means = " and ".join(f"{mean:,.1f}{f' ({kind})' if len(lengths) > 1 else ''}" for kind, mean in lengths.items())
        return (
            f"{self.units()}, {self.kept.tokens:,} tokens, {self.supervised_share:.1%} supervised, "
            f"{self.prompt_share:.1%} prompt, answers of {means} tokens on average"
        )

    @override
    def changes(self) -> list[str]:
        lines = super().changes()
        joined, cut = self.joined, self.cut
        if joined.before:
            lines.append(
                f"joined: {joined.items:,} {self.noun} of {joined.before:,} examples share {joined.after:,} trees, one "
                f"for each prompt, with {joined.tokens:,} tokens fewer"
            )
        if joined.rescored:
            lines.append(f"answers that have several scores, of which the first counts: {joined.rescored:,}")
        if cut.before:
            lines.append(
                f"cut: {cut.before:,} trees longer than a row are {cut.after:,}, with {cut.tokens:,} tokens repeated"
            )
        return lines

    @override
    def to_dict(self) -> dict[str, Any]:
        means = {f"mean_{kind}": round(mean, 1) for kind, mean in self.means().items()}
        return super().to_dict() | {"prompt_share": round(self.prompt_share, 4)} | means


@dataclass(frozen=True)
class PairReport(TreeReport):
    """Counts of one source of preference pairs.

    Attributes:
        chosen: Tokens of the preferred answers, each as often as it is preferred.
        rejected: Tokens of the others, in the same way.
    """

    noun: ClassVar[str] = "pairs"
    kind: ClassVar[str] = "pairs"

    chosen: int
    rejected: int

    @classmethod
    @override
    def lengths(cls, spans: Spans) -> dict[str, Any]:
        chosen, rejected = spans.segment_lengths[spans.pair_segments].sum(axis=0, dtype=int).tolist()
        return {"chosen": chosen, "rejected": rejected}

    @override
    def means(self) -> dict[str, float]:
        pairs = max(self.kept.documents, 1)  # filters may leave nothing
        return {"chosen": self.chosen / pairs, "rejected": self.rejected / pairs}

    @override
    def columns(self) -> dict[str, int]:
        return {**super().columns(), "answers": self.answers}

    @override
    def units(self) -> str:
        return f"{self.kept.documents:,} pairs of {super().units()}"


@dataclass(frozen=True)
class AnswerReport(TreeReport):
    """Counts of one source of labeled answers.

    Attributes:
        desirable: Answers of label 1 in one epoch, and their tokens.
        mismatched: Answers of other prompts that trees were given, of which no label is known, and their tokens.
    """

    noun: ClassVar[str] = "answers"
    kind: ClassVar[str] = "answers"

    desirable: FilterCounts
    mismatched: FilterCounts

    @classmethod
    @override
    def lengths(cls, spans: Spans) -> dict[str, Any]:
        wanted, unknown = spans.values == 1, np.isnan(spans.values) & ~spans.roots
        counts = [FilterCounts(int(some.sum()), int(spans.segment_lengths[some].sum())) for some in (wanted, unknown)]
        return {"desirable": counts[0], "mismatched": counts[1]}

    @classmethod
    @override
    def counted(cls, spans: Spans) -> FilterCounts:
        # Neither prompts nor mismatched answers have a label.
        return FilterCounts(int((~np.isnan(spans.values)).sum()), spans.counts.tokens)

    @classmethod
    @override
    def trained(cls, selection: Selection) -> Numbers:
        # Mismatched answers run without a gradient.
        return np.where(np.isnan(selection.spans.values), 0, super().trained(selection))

    @override
    def columns(self) -> dict[str, int]:
        return {**super().columns(), "desirable": self.desirable.documents, "mismatched": self.mismatched.documents}

    @override
    def means(self) -> dict[str, float]:
        tokens = self.kept.tokens - self.prompt - self.mismatched.tokens - self.desirable.tokens
        undesirable = self.kept.documents - self.desirable.documents
        return {
            "desirable": self.desirable.tokens / max(self.desirable.documents, 1),
            "undesirable": tokens / max(undesirable, 1),
        }

    @override
    def units(self) -> str:
        labels = f"{self.desirable.documents:,} desirable"
        mismatched = f" and {self.mismatched.documents:,} mismatched answers" if self.mismatched.documents else ""
        return f"{self.kept.documents:,} answers ({labels}){mismatched} to {self.prompts:,} prompts"


def values_differ(spans: Spans) -> Choice:
    """``(documents,)`` whether the answers of each group have different values."""
    firsts = spans.offsets[:-1]
    differ: Choice = np.fmax.reduceat(spans.values, firsts) > np.fmin.reduceat(spans.values, firsts)  # no prompt's NaN
    return differ


@dataclass(frozen=True)
class GroupReport(TreeReport):
    """Counts of one source of groups: scored answers of one prompt, which are compared with each other.

    Attributes:
        equal: Groups of one epoch whose scores are all equal; they are left out unless they are to be kept.
    """

    noun: ClassVar[str] = "answers"
    kind: ClassVar[str] = "groups"

    equal: int

    @classmethod
    @override
    def lengths(cls, spans: Spans) -> dict[str, Any]:
        return {"equal": int((~values_differ(spans)).sum())}

    @override
    def units(self) -> str:
        equal = f", {self.equal:,} of equal scores" if self.equal else ""
        return f"{self.prompts:,} groups{equal} of {self.answers:,} answers"
