"""Filling rows: nothing lost, nothing cut where it must not be, rows as full as derived by hand."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from lion_lightning.data.packing.best_fit import BestFit, Integers, PackedRows, Packing, Span, Unpacked, Wrapped
from tests.marks import exhaustive

PACKINGS = [BestFit(), Unpacked(), Wrapped()]


def pack(packing: Packing, lengths: Sequence[int], capacity: int, seed: int = 0) -> PackedRows:
    return packing.rows(np.array(lengths, dtype=np.int64), capacity, np.random.default_rng(seed))


def row_lengths(rows: PackedRows) -> list[list[int]]:
    """Lengths of the spans of each row, longest first, and rows in order of those."""
    return sorted(sorted((s.stop - s.start for s in rows.spans(row)), reverse=True) for row in range(len(rows)))


def all_spans(rows: PackedRows) -> list[Span]:
    return [span for row in range(len(rows)) for span in rows.spans(row)]


def random_lengths(seed: int) -> tuple[list[int], int]:
    """Lengths with the awkward ones among them (1, capacity - 1, capacity, many equal), and a capacity."""
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(2, 40))
    drawn = rng.integers(1, capacity + 1, size=int(rng.integers(0, 60))).tolist()
    return [1, capacity - 1, capacity, *drawn, *[max(1, capacity // 3)] * 7], capacity


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: type(packing).__name__)
@pytest.mark.parametrize("seed", [*range(10), *exhaustive(*range(10, 40))])
def test_every_token_of_every_document_comes_out_exactly_once(packing: Packing, seed: int) -> None:
    lengths, capacity = random_lengths(seed)
    rows = pack(packing, lengths, capacity, seed)
    tokens = [(span.document, place) for span in all_spans(rows) for place in range(span.start, span.stop)]
    assert sorted(tokens) == [(document, place) for document, n in enumerate(lengths) for place in range(n)]
    assert rows.tokens == sum(lengths)
    assert all(0 < sum(row) <= capacity for row in row_lengths(rows))


@pytest.mark.parametrize("packing", [BestFit(), Unpacked()], ids=["BestFit", "Unpacked"])
@pytest.mark.parametrize("seed", [*range(10), *exhaustive(*range(10, 20))])
def test_an_answer_is_never_cut_by_the_end_of_a_row(packing: Packing, seed: int) -> None:
    """LIONs: an answer that a pack boundary cuts loses its labels on both sides."""
    lengths, capacity = random_lengths(seed)
    spans = all_spans(pack(packing, lengths, capacity, seed))
    assert sorted(spans) == [Span(document, 0, length) for document, length in enumerate(lengths)]


def test_the_tail_of_the_list_is_not_dropped() -> None:
    """LIONs: what does not fill the last pack of each 1,024 rows is dropped; 2,050 documents of 3 in rows of 7."""
    rows = pack(BestFit(), [3] * 2050, 7)
    assert len(rows) == 1025
    assert rows.tokens == 6150


def test_a_set_shorter_than_one_row_gives_one_row() -> None:
    """LIONs: it gives none."""
    for packing in (BestFit(), Wrapped()):
        rows = pack(packing, [3, 4], 100)
        assert row_lengths(rows) == [[4, 3]]
        assert rows.efficiency(100) == pytest.approx(0.07)


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: type(packing).__name__)
def test_no_documents_give_no_rows(packing: Packing) -> None:
    rows = pack(packing, [], 8)
    assert (len(rows), rows.tokens, rows.efficiency(8)) == (0, 0, 0.0)


@pytest.mark.parametrize(
    ("lengths", "capacity", "expected"),
    [
        # 6 opens a row (4 left), 5 another (5 left), 4 fills the first, 3 goes to the second (2 left), 2 fills it
        ([2, 3, 4, 5, 6], 10, [[5, 3, 2], [6, 4]]),
        # 7 leaves 3 and 6 leaves 4: the 3 goes where it fits best, in the fuller row
        ([3, 6, 7], 10, [[6], [7, 3]]),
        # first-fit would put the 2 into the first row (3 left); best-fit puts it into the fullest that holds it
        ([7, 8, 2], 10, [[7], [8, 2]]),
        # equal lengths: two a row, one is over
        ([5, 5, 5, 5, 5], 10, [[5], [5, 5], [5, 5]]),
        # a document of exactly a row, and one that leaves a single token free, which a document of one token takes
        ([10, 9, 1], 10, [[9, 1], [10]]),
        ([10], 10, [[10]]),
        ([1], 1, [[1]]),
        # where best-fit decreasing is not the best: two rows of [3, 2, 2] would do
        ([3, 3, 2, 2, 2, 2], 7, [[2], [2, 2, 2], [3, 3]]),
    ],
)
def test_best_fit_decreasing_by_hand(lengths: list[int], capacity: int, expected: list[list[int]]) -> None:
    assert row_lengths(pack(BestFit(), lengths, capacity)) == expected


@pytest.mark.parametrize("seed", [*range(10), *exhaustive(*range(10, 20))])
def test_best_fit_equals_a_plain_search_for_the_fullest_row(seed: int) -> None:
    lengths, capacity = random_lengths(seed)
    expected: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in expected if sum(row) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            expected.append([length])
    rows = row_lengths(pack(BestFit(), lengths, capacity, seed))
    assert sorted(map(sum, rows)) == sorted(map(sum, expected))


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: type(packing).__name__)
def test_the_number_of_rows_does_not_depend_on_chance(packing: Packing) -> None:
    lengths, capacity = random_lengths(3)
    assert len({len(pack(packing, lengths, capacity, seed)) for seed in range(30)}) == 1


def test_documents_of_equal_length_change_places_with_the_seed() -> None:
    orders = [tuple(pack(BestFit(), [5] * 20, 10, seed).documents.tolist()) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    ("packing", "needed"), [(BestFit(), True), (Unpacked(), True), (Wrapped(), False)], ids=["best", "none", "wrapped"]
)
def test_a_document_longer_than_a_row_is_refused_by_number_unless_the_packing_cuts(
    packing: Packing, needed: bool
) -> None:
    if not needed:
        assert row_lengths(pack(packing, [9], 4)) == [[1], [4], [4]]
        return
    with pytest.raises(ValueError, match=r"document 1 has 9 tokens, more than the 4 of a row"):
        pack(packing, [4, 9], 4)


def test_wrapped_cuts_only_at_the_ends_of_rows_and_the_parts_join_to_the_documents() -> None:
    lengths = [5, 1, 12, 3, 8]
    rows = pack(Wrapped(), lengths, 7, seed=4)
    filled = [sum(s.stop - s.start for s in rows.spans(row)) for row in range(len(rows))]
    assert filled == [7, 7, 7, 7, 1]  # 29 tokens
    spans = all_spans(rows)
    order = list(dict.fromkeys(span.document for span in spans))
    joined = [(span.document, place) for span in spans for place in range(span.start, span.stop)]
    assert joined == [(document, place) for document in order for place in range(lengths[document])]
    assert len(spans) <= len(lengths) + 4  # a cut at each of the 4 inner ends of rows, at most, and none elsewhere


def test_wrapped_by_hand() -> None:
    class Still:
        """A generator that leaves documents in their order."""

        def permutation(self, count: int) -> Integers:
            return np.arange(count)

    rows = Wrapped().rows(np.array([3, 4, 2, 6]), 5, Still())  # type: ignore[arg-type]
    assert [rows.spans(row) for row in range(len(rows))] == [
        [Span(0, 0, 3), Span(1, 0, 2)],
        [Span(1, 2, 4), Span(2, 0, 2), Span(3, 0, 1)],
        [Span(3, 1, 6)],
    ]


def test_unpacked_keeps_the_order_of_the_documents() -> None:
    assert all_spans(pack(Unpacked(), [2, 5, 1], 8)) == [Span(0, 0, 2), Span(1, 0, 5), Span(2, 0, 1)]


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: type(packing).__name__)
def test_lengths_of_a_narrow_type_do_not_overflow(packing: Packing) -> None:
    """Lengths stored in 32 bits, whose sum does not fit there."""
    rows = packing.rows(np.full(100_000, 30_000, dtype=np.int32), 60_000, np.random.default_rng(0))
    assert rows.tokens == 3_000_000_000


@pytest.mark.slow
@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.exhaustive)])
def test_memory_stays_within_a_few_numbers_a_document(count: int) -> None:
    """What is alive at the peak: a dozen numbers of 8 bytes a document (arrays and lists), never an object a document.

    A tuple a document alone would take 64 bytes more, and a list a row of 10 documents 9 more.
    """
    capacity = 8192
    lengths = np.random.default_rng(0).lognormal(5.5, 1.0, count).astype(np.int64).clip(1, capacity)
    tracemalloc.start()
    try:
        rows = BestFit().rows(lengths, capacity, np.random.default_rng(0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows.tokens == int(lengths.sum())
    assert peak < 12 * 8 * count + capacity * 200  # the second term: a list for each possible space


def test_a_row_far_larger_than_all_documents_costs_no_more_than_they_do() -> None:
    rows = BestFit().rows(np.array([3, 5, 2]), 10**12, np.random.default_rng(0))
    assert len(rows) == 1
    assert sorted(rows.documents.tolist()) == [0, 1, 2]
