"""Trees of one prompt are joined, and those longer than a row are cut."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import chain
from typing import NamedTuple

import numpy as np

from lion_lightning.data.formats.pairing import places_of
from lion_lightning.data.packing.best_fit import Integers
from lion_lightning.data.selection.documents import Regrouped, Selection
from lion_lightning.data.selection.spans import Choice, FilterCounts, Spans, sort_hashes
from lion_lightning.types import SampleSegment

Unit = tuple[int, ...]
"""Answers of a tree that stay together: those of a pair, or one alone."""


class Tree(NamedTuple):
    """A tree made of segments of other trees.

    Attributes:
        position: The document whose place and number it takes.
        segments: The prompt and the answers, as positions among all segments.
        pairs: Chosen and rejected among its answers.
        rescored: Answers that came again with another score.
    """

    position: int
    segments: list[int]
    pairs: list[tuple[int, int]]
    rescored: int = 0


def join(selection: Selection) -> Selection:
    """Make one tree of all that share a prompt, by hash and, after truncation, by tokens.

    Equal answers of pairs become one answer, with the first score that is known. Pairs keep their direction, even where
    others say the opposite; one that comes again is left out. Equal answers without pairs become one where their values
    are equal; one that is wanted here and not there stays twice, once with each label.
    """
    joined, gone = [], np.zeros(len(selection.spans.numbers), np.bool_)
    sizes = np.diff(selection.spans.offsets)
    for documents in _alike(selection):
        for members in _by_prompt(selection, documents):
            tree = _joined(selection, members)
            if sizes[members].sum() > len(tree.segments):
                joined.append(tree)
                gone[members] = True
    if not joined:
        return selection
    spans = _replaced(selection.spans, gone, joined)
    before, after = selection.spans.counts, spans.counts
    again, left_out = before.documents - after.documents, dict(selection.left_out)
    if again:
        left_out["the same pair again" if len(spans.pairs) else "the same answer again"] = FilterCounts(again)
    items = selection.spans.take(gone).counts.documents - again
    rescored = sum(tree.rescored for tree in joined)
    change = Regrouped(items, int(gone.sum()), len(joined), before.tokens - after.tokens, rescored)
    return replace(selection, spans=spans, left_out=left_out, joined=change)


def cut(selection: Selection, row_length: int | None) -> Selection:
    """Make several trees of each that is longer than a row, all with its prompt.

    Of pairs each comes once; the next of a tree is the one that adds the fewest tokens, so that few answers are
    repeated. Single answers come once each; one without a value, a mismatched one, comes together with the first.
    What has no room in a row by itself is left for :func:`~lion_lightning.data.selection.mixture.require_fitting`.
    """
    spans = selection.spans
    long: Choice = spans.lengths > (math.inf if row_length is None else row_length)
    if row_length is None or not long.any():
        return selection
    parts: list[Tree] = []
    for document in np.flatnonzero(long).tolist():
        parts += _parts(spans, document, row_length)
    made = _replaced(spans, long, parts)
    repeated = made.counts.tokens - spans.counts.tokens
    change = Regrouped(spans.take(long).counts.documents, int(long.sum()), len(parts), repeated)
    return replace(selection, spans=made, cut=change)


def leave_out_repeated(selections: Sequence[Selection]) -> list[Selection]:
    """Leave out pairs that an earlier source has too, with the same prompt and answers, in whatever rows.

    Rows with the same content are duplicates; here a row of ranked answers has pairs that are rows elsewhere.
    """
    kept, seen = [], set[bytes]()
    for selection, shared in zip(selections, _in_several(selections), strict=True):
        spans = selection.spans
        own: dict[int, bytes] = {}  # its pairs, by content
        for document in np.flatnonzero(shared & (np.diff(spans.pair_offsets) > 0)).tolist():
            root, first = int(spans.offsets[document]), int(spans.pair_offsets[document])
            segments = range(root, int(spans.offsets[document + 1]))
            contents = [blake2b(_content(selection.segment(segment))).digest() for segment in segments]
            prompt = selection.groups[document].tobytes() + contents[0]
            for number, (chosen, rejected) in enumerate(_pairs(spans, document)):
                own[first + number] = prompt + contents[1 + chosen] + contents[1 + rejected]
        keep = np.ones(len(spans.pairs), np.bool_)
        keep[[number for number, content in own.items() if content in seen]] = False
        kept.append(selection.filter_pairs(keep, "the same pair in an earlier source"))
        seen.update(own.values())
    return kept


def _in_several(selections: Sequence[Selection]) -> list[Choice]:
    """For each source: True for each document whose prompt is in other sources too."""
    sizes = [len(selection.spans.numbers) for selection in selections]
    origins = np.repeat(np.arange(len(sizes)), sizes)
    order, new = sort_hashes(np.concatenate([selection.groups for selection in selections]))
    shared = np.zeros(len(order), np.bool_)
    if len(order):
        firsts = np.flatnonzero(new)
        least, most = (each.reduceat(origins[order], firsts) for each in (np.minimum, np.maximum))
        shared[order] = (most > least)[np.cumsum(new) - 1]
    return np.split(shared, np.cumsum(sizes)[:-1])


def _alike(selection: Selection) -> list[list[int]]:
    """Documents that may have a segment in common: those of one prompt, or one with two answers of equal lengths."""
    order, new = sort_hashes(selection.groups)
    firsts = np.flatnonzero(new)
    sizes = np.diff(np.append(firsts, len(order)))
    found: list[list[int]] = []
    for first, size in zip(firsts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        found.append(sorted(order[first : first + size].tolist()))
    alone = set(_with_equal_lengths(selection.spans)).difference(chain.from_iterable(found))
    return sorted([*found, *([document] for document in alone)])


def _by_prompt(selection: Selection, documents: list[int]) -> Iterable[list[int]]:
    """The documents by the tokens of their prompts."""
    if len(documents) == 1:
        return [documents]
    found: dict[bytes, list[int]] = defaultdict(list)
    for document in documents:
        found[_content(selection.segment(int(selection.spans.offsets[document])))].append(document)
    return found.values()


def _with_equal_lengths(spans: Spans) -> list[int]:
    """Documents with two answers of the same number of tokens, but for pairs alone: filters leave out equal answers."""
    owners, lengths = spans.owners, spans.segment_lengths
    fewest = 3 if len(spans.pairs) else 2
    answers = np.flatnonzero((np.diff(spans.offsets) > fewest)[owners] & ~spans.roots)
    owners, lengths = owners[answers], lengths[answers]
    order = np.lexsort((lengths, owners))
    owners, lengths = owners[order], lengths[order]
    found: list[int] = np.unique(owners[1:][(owners[1:] == owners[:-1]) & (lengths[1:] == lengths[:-1])]).tolist()
    return found


def _joined(selection: Selection, documents: Sequence[int]) -> Tree:
    """One tree of documents of the same prompt."""
    spans = selection.spans
    tree = [int(spans.offsets[documents[0]])]
    counts: Counter[int] = Counter()  # of answers by their length
    for document in documents:
        part = slice(int(spans.offsets[document]) + 1, int(spans.offsets[document + 1]))
        counts.update((spans.stops[part] - spans.starts[part]).tolist())
    places: dict[tuple[int, bytes, float], int] = {}
    pairs: dict[tuple[int, int], None] = {}
    rescored = set()
    for document in documents:
        own = []  # place of each of its answers in the joined tree
        for segment in range(int(spans.offsets[document]) + 1, int(spans.offsets[document + 1])):
            length = int(spans.stops[segment] - spans.starts[segment])
            value = 0.0 if len(spans.pairs) else float(spans.values[segment])
            # The only answer of its length needs no reading to be told from the others.
            content = _content(selection.segment(segment)) if counts[length] > 1 else b""
            place = places.setdefault((length, content, value), len(places))
            own.append(place)
            if place + 1 == len(tree):
                tree.append(segment)
            elif np.isnan(known := spans.values[tree[place + 1]]):
                tree[place + 1] = segment
            elif abs(spans.values[segment] - known) > 0:  # not where it is unknown
                rescored.add(place)
        for chosen, rejected in _pairs(spans, document):
            pairs.setdefault((own[chosen], own[rejected]))
    return Tree(documents[0], tree, list(pairs), len(rescored))


def _parts(spans: Spans, document: int, row_length: int) -> list[Tree]:
    first, last = int(spans.offsets[document]), int(spans.offsets[document + 1])
    lengths = spans.segment_lengths[first:last].tolist()
    pairs = _pairs(spans, document)
    units: list[Unit] = [*pairs]
    if not pairs:  # each answer alone, and those without a value with the first that has one
        unknown = np.isnan(spans.values[first + 1 : last])
        units = [(answer,) for answer in np.flatnonzero(~unknown).tolist()] or [()]
        units[0] = (*units[0], *np.flatnonzero(unknown).tolist())
    trees = []
    for part in _fill(units, lengths[1:], row_length - lengths[0], fewest=bool(pairs)):
        places = places_of(part)
        own = [(places[unit[0]], places[unit[1]]) for unit in part] if pairs else []
        trees.append(Tree(document, [first, *(first + 1 + answer for answer in places)], own))
    return trees


def _fill(units: Sequence[Unit], lengths: Sequence[int], room: int, fewest: bool) -> list[list[Unit]]:
    """Units that go together, with at most ``room`` tokens of answers where more than one does.

    Args:
        units: The units, each of which has a place in exactly one part.
        lengths: Tokens of each answer.
        room: Tokens of the answers of a part.
        fewest: Whether the unit comes next that adds the fewest tokens; else the longest that has room.
    """
    width = max(map(len, units))
    sizes = np.array([*lengths, 0])  # the last is of no answer, which fills units up
    answers = np.array([[*unit, *[len(lengths)] * (width - len(unit))] for unit in units])  # (units, width)
    left = np.arange(len(units))
    parts = []
    while len(left):
        new = sizes.copy()  # tokens that each answer adds to the part
        used = 0
        part: list[Unit] = []
        place = 0  # the first comes in any case
        while place >= 0:
            number = left[place]
            part.append(units[number])
            used += int(new[answers[number]].sum())
            new[answers[number]] = 0
            left = left[left != number]
            added = new[answers[left]].sum(axis=1)  # (units left,)
            fitting = np.flatnonzero(used + added <= room)
            costs = added[fitting] if fewest else -added[fitting]
            place = int(fitting[costs.argmin()]) if len(fitting) else -1
        parts.append(part)
    return parts


def _replaced(spans: Spans, gone: Choice, trees: Sequence[Tree]) -> Spans:
    """The documents that are not gone, and trees in the places of those that are."""
    positions, segments, pairs, _ = map(list, zip(*trees, strict=True))
    flat = list(chain.from_iterable(segments))
    made = Spans(
        spans.numbers[positions],
        _offsets(segments),
        spans.rows[flat],
        spans.starts[flat],
        spans.stops[flat],
        spans.values[flat],
        _offsets(pairs),
        np.array(list(chain.from_iterable(pairs)), np.int64).reshape(-1, 2),
    )
    kept = np.flatnonzero(~gone)
    order = np.argsort(np.concatenate([kept, positions]), kind="stable")
    return Spans.concatenate([spans.take(kept), made]).take(order)


def _pairs(spans: Spans, document: int) -> list[tuple[int, int]]:
    pairs = spans.pairs[spans.pair_offsets[document] : spans.pair_offsets[document + 1]].tolist()
    return [(chosen, rejected) for chosen, rejected in pairs]


def _content(segment: SampleSegment) -> bytes:
    """All that makes two segments the same: tokens, targets and their weights."""
    weights = b"" if segment.weights is None else segment.weights.tobytes()
    return segment.input_ids.tobytes() + segment.supervised.tobytes() + weights


def _offsets(lists: Iterable[Sequence[object]]) -> Integers:
    return np.cumsum([0, *map(len, lists)])
