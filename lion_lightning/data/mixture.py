"""From tokenised sources to the documents of an epoch, with an account of everything left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lion_lightning.data.documents import Choice, Documents, Selection, Spans, Tally
from lion_lightning.data.readers import Numbers
from lion_lightning.data.sources import Source
from lion_lightning.data.tokenized import TokenTable

Overlong = Literal["truncate", "split", "drop"]


@dataclass(frozen=True)
class SourceReport:
    """What became of one source. ``read`` tokens = ``kept`` - ``repeated`` + ``truncated`` + all of ``lost``.

    Attributes:
        name: The source's name.
        rows: Raw rows read.
        skipped: How many of them the transform made nothing of.
        read: Examples made of the rows.
        lost: Documents left out, by cause.
        truncated: Documents cut to length, and the tokens cut off them.
        split: Documents cut into several.
        repeated: The part of ``kept`` that a fraction above 1 adds.
        kept: Documents of one epoch.
        supervised: Tokens trained in one epoch.
        longest: Tokens of the longest example read.
    """

    name: str
    rows: int
    skipped: int
    read: Tally
    lost: dict[str, Tally]
    truncated: Tally
    split: int
    repeated: Tally
    kept: Tally
    supervised: int
    longest: int

    @property
    def supervised_share(self) -> float:
        """Share of the kept tokens that is trained."""
        return self.supervised / max(self.kept.tokens, 1)

    def __str__(self) -> str:
        """The source on one line, for logs."""
        kept = f"{self.kept.documents:,} documents, {self.kept.tokens:,} tokens, {self.supervised_share:.1%} supervised"
        return "; ".join([f"{self.name}: {kept}", *self.changes()])

    def changes(self) -> list[str]:
        """What makes the kept documents differ from the rows, an item each."""
        lines = [f"left out, {cause}: {tally}" for cause, tally in self.lost.items()]
        if self.skipped:
            lines.append(f"rows skipped by the transform: {self.skipped:,}")
        if self.truncated.documents:
            lines.append(f"truncated: {self.truncated.documents:,} (by {self.truncated.tokens:,} tokens)")
        if self.split:
            lines.append(f"split: {self.split:,}")
        if self.repeated.documents:
            lines.append(f"repeated: {self.repeated}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, for YAML and JSON."""
        values = {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}
        return values | {"supervised_share": round(self.supervised_share, 4)}


class Mixture(NamedTuple):
    """The documents of an epoch, and one report a source."""

    documents: Documents
    reports: list[SourceReport]


def deduplicate(sources: Sequence[Source], tables: Sequence[TokenTable]) -> list[Selection]:
    """Number the examples of all sources, and keep the first of those with the same content.

    An example's number is its position among the unique examples of all sources, in order. Memory: some 40 bytes an
    example; no text is held.
    """
    sizes = [len(table) for table in tables]
    first = _first(np.concatenate([table.digests for table in tables]))
    numbers = np.cumsum(first) - 1
    bounds = np.cumsum([0, *sizes])
    selections = []
    for source, table, low, high in zip(sources, tables, bounds[:-1], bounds[1:], strict=True):
        rows = np.arange(len(table))
        spans = Spans(rows, np.zeros_like(rows), table.lengths.astype(np.int64), numbers[low:high])
        selections.append(Selection(source, table, spans).only(first[low:high], "duplicate"))
    return selections


def without(selections: Sequence[Selection], others: Sequence[Selection], cause: str) -> list[Selection]:
    """Leave out what the others hold too, so that no document is both trained and validated on."""
    theirs = np.concatenate([other.digests for other in others])
    kept = []
    for selection in selections:
        both = np.concatenate([theirs, selection.digests])
        kept.append(selection.only(_first(both)[len(theirs) :], cause))
    return kept


def hold_out(selections: Sequence[Selection], share: float) -> tuple[list[Selection], list[Selection]]:
    """Split into what is trained and what validates, by content: the same document always lands on the same side.

    Args:
        selections: Unique examples.
        share: Share to hold out, between 0 and 1. Chosen by hash, so the number comes out near it, not at it.
    """
    train, held = [], []
    for selection in selections:
        chosen = selection.digests[:, 0] < np.uint64(share * 2.0**64)
        train.append(selection.only(~chosen, "held out for validation"))
        once = replace(selection.source, fraction=min(selection.source.fraction, 1.0))
        held.append(replace(selection.only(chosen, "used for training"), source=once))
    return train, held


def mix(
    selections: Sequence[Selection], max_length: int, overlong: Overlong = "truncate", min_supervised_share: float = 0.0
) -> Mixture:
    """Cut what is too long, leave out what trains nothing, repeat what is to be repeated.

    Args:
        selections: The examples of each source.
        max_length: Tokens that a document may have.
        overlong: What happens to a longer one: ``truncate`` keeps its start; ``split`` cuts it into parts of
            ``max_length`` and a rest, of which each first token is not trained; ``drop`` leaves it out.
        min_supervised_share: Documents with a smaller share of supervised tokens are left out. The LIONs paper's code
            leaves out what is masked by more than 90 %: 0.1 here.

    Raises:
        ValueError: A source has no supervised token at all, or nothing is left; the message holds the counts.
    """
    finished = [_finish(selection, max_length, overlong, min_supervised_share) for selection in selections]
    mixture = Mixture(Documents([selection for selection, _ in finished]), [report for _, report in finished])
    if len(mixture.documents) == 0:
        counts = " | ".join(map(str, mixture.reports))
        raise ValueError(f"the mixture is empty ({counts}); mend what left its documents out")
    return mixture


class _Cut(NamedTuple):
    selection: Selection
    truncated: Tally = Tally()
    split: int = 0


def _truncate(selection: Selection, max_length: int) -> _Cut:
    spans = selection.spans
    short = spans._replace(stops=np.minimum(spans.stops, spans.starts + max_length))
    cut_off = Tally(int((spans.lengths > max_length).sum()), spans.tally.tokens - short.tally.tokens)
    return _Cut(replace(selection, spans=short), truncated=cut_off)


def _split(selection: Selection, max_length: int) -> _Cut:
    spans = selection.spans
    parts = np.maximum(-(-spans.lengths // max_length), 1)
    repeated = spans.take(np.repeat(np.arange(len(parts)), parts))
    nth = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)  # 0, 1, ... within each document
    starts = repeated.starts + nth * max_length
    cut = repeated._replace(starts=starts, stops=np.minimum(repeated.stops, starts + max_length))
    return _Cut(replace(selection, spans=cut), split=int((parts > 1).sum()))


def _drop(selection: Selection, max_length: int) -> _Cut:
    return _Cut(selection.only(selection.spans.lengths <= max_length, f"longer than {max_length} tokens"))


_CUTS: Mapping[Overlong, Callable[[Selection, int], _Cut]] = {"truncate": _truncate, "split": _split, "drop": _drop}


def _finish(
    selection: Selection, max_length: int, overlong: Overlong, min_share: float
) -> tuple[Selection, SourceReport]:
    _refuse_if_untrainable(selection)
    cut, truncated, split = _CUTS[overlong](selection, max_length)
    taught = cut.only(_targets(cut) > 0, "no supervised token")
    shares = _targets(taught) / taught.spans.lengths
    once = taught.only(shares >= min_share, f"supervised share below {min_share:g}")
    order = _repeats(len(once.spans.rows), once.source)
    final = replace(once, spans=once.spans.take(order))
    table, kept, unrepeated = selection.table, final.spans.tally, once.spans.tally
    return final, SourceReport(
        name=selection.source.label,
        rows=table.raw_rows,
        skipped=table.skipped_rows,
        read=Tally(len(table), int(table.lengths.sum())),
        lost=final.lost,
        truncated=truncated,
        split=split,
        repeated=Tally(kept.documents - unrepeated.documents, kept.tokens - unrepeated.tokens),
        kept=kept,
        supervised=int(_targets(once)[order].sum()),
        longest=int(table.lengths.max(initial=0)),
    )


def _targets(selection: Selection) -> Numbers:
    spans = selection.spans
    return selection.table.targets(spans.rows, spans.starts, spans.stops)


def _repeats(count: int, source: Source) -> Numbers:
    """Positions of a source's documents, as often as its fraction says."""
    whole, part = divmod(max(source.fraction, 1.0), 1.0)
    extra = np.random.default_rng(source.seed).permutation(count)[: round(part * count)]
    return np.concatenate([np.tile(np.arange(count), int(whole)), np.sort(extra)])


def _refuse_if_untrainable(selection: Selection) -> None:
    table, name = selection.table, selection.source.label
    if len(table) == 0:
        raise ValueError(
            f"source {name}: the transform made no example of its {table.raw_rows} rows; mend the transform"
        )
    rows = np.arange(len(table))
    if not table.targets(rows, np.zeros_like(rows), table.lengths.astype(np.int64)).any():
        raise ValueError(
            f"source {name}: no token of its {len(table)} examples is supervised, so it would train nothing; "
            "check `mask`, the chat template, and which column holds the answer"
        )


def _first(digests: npt.NDArray[np.uint64]) -> Choice:
    """Whether each digest is the first of its value; 128 bits as two words."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal ones stay in order
    ordered = digests[order]
    first = np.ones(len(digests), dtype=bool)
    first[order[1:]] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return first


def _plain(value: Any) -> Any:
    if isinstance(value, Tally):
        return value._asdict()
    return {key: _plain(inner) for key, inner in value.items()} if isinstance(value, dict) else value
