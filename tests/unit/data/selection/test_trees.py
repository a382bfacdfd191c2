"""Trees of any number of answers: filtered by pairs, joined by prompt, cut to rows, with every token accounted for."""

from __future__ import annotations

import json
from itertools import chain, combinations
from typing import Any

import numpy as np
import pytest

from lion_lightning.data.reports.source_report import SourceReport
from lion_lightning.data.reports.tree_reports import TreeReport
from lion_lightning.data.selection.documents import Regrouped
from lion_lightning.data.selection.mixture import Mixture, mix, require_fitting
from lion_lightning.data.selection.pair_filters import PairFilters
from lion_lightning.data.selection.spans import FilterCounts, Spans
from lion_lightning.data.selection.trees import cut
from lion_lightning.types import Sample
from tests.unit.data.letters import letters
from tests.unit.data.selection.conftest import Selections, Trees

ALL_OF_THREE = [[0, 1], [0, 2], [1, 2]]


def row(tree: str, values: Any = None, pairs: Any = ()) -> dict[str, Any]:
    return {"tree": tree, "values": values, "pairs": list(pairs)}


def samples(mixture: Mixture) -> list[Sample]:
    return [mixture.documents[place] for place in range(len(mixture.documents))]


def shown(mixture: Mixture) -> list[tuple[str, tuple[tuple[int, int], ...]]]:
    return [(" ".join(letters(sample)), sample.pairs) for sample in samples(mixture)]


def report_of(mixture: Mixture) -> TreeReport:
    (report,) = mixture.reports
    assert isinstance(report, TreeReport)
    return report


def adds_up(report: TreeReport) -> bool:
    gone = sum(counts.tokens for counts in (*report.left_out.values(), *report.truncated.values()))
    kept = report.kept.tokens - report.repeated.tokens + report.joined.tokens - report.cut.tokens
    lost = sum(counts.documents for counts in report.left_out.values())
    same = report.read.documents == report.kept.documents - report.repeated.documents + lost
    return same and report.read.tokens == kept + gone


# --- pairs among the answers of a tree


def test_an_answer_of_several_pairs_is_one_segment(trees: Trees) -> None:
    mixture = trees(row("pq AB C DEF", [3, 2, 1], ALL_OF_THREE))
    (sample,) = samples(mixture)
    assert letters(sample) == ("pq", "AB", "C", "DEF")
    assert [part.parent for part in sample.segments] == [-1, 0, 0, 0]
    assert (sample.values, sample.pairs) == ((3.0, 2.0, 1.0), ((0, 1), (0, 2), (1, 2)))
    assert mixture.documents.lengths.tolist() == [8]
    report = report_of(mixture)
    assert (report.kept, report.prompts, report.answers, report.prompt) == (FilterCounts(3, 8), 1, 3, 2)
    # AB is preferred twice and C once; C is rejected once and DEF twice.
    assert report.means() == {"chosen": (2 + 2 + 1) / 3, "rejected": (1 + 3 + 3) / 3}
    assert report.summary().startswith("3 pairs of 3 answers to 1 prompts, 8 tokens, 75.0% supervised, 25.0% prompt")
    # Three sequences of two answers each would have 3 * 2 * 2 tokens of prompts, and every answer twice.
    assert mixture.documents.shared == 12 + 2 * 6 - 8


def test_filters_leave_out_pairs_then_answers_without_one_then_prompts_without_any(trees: Trees) -> None:
    rows = (
        row("p AB C DEF", [3, 3, 1], ALL_OF_THREE),  # a tie of the first two
        row("q AB C", [1, 2], [[0, 1]]),  # against the label
        row("r AB C DE", [5, 4.5, 1], ALL_OF_THREE),  # margins 0.5, 4 and 3.5
        row("s AB AB CD", [3, 2, 1], [[0, 1], [0, 2]]),
    )
    mixture = trees(*rows, filters=PairFilters(16, min_margin=3.75))
    assert shown(mixture) == [("r AB DE", ((0, 1),))]
    report = report_of(mixture)
    assert report.left_out == {
        "identical answers": FilterCounts(1, 2),  # with it goes the second AB
        "equal scores": FilterCounts(1, 0),  # both answers are in other pairs
        "scores against the label": FilterCounts(1, 4),
        "score margin below 3.75": FilterCounts(2 + 2 + 1, 7 + 1 + 5),
    }
    assert adds_up(report)


def test_an_unsupervised_answer_takes_its_pairs_with_it(trees: Trees) -> None:
    mixture = trees(row("p AB cd EF", [3, 2, 1], ALL_OF_THREE), row("q Ab cd", None, [[0, 1]]))
    assert shown(mixture) == [("p AB EF", ((0, 1),))]
    report = report_of(mixture)
    assert report.left_out == {"an answer without a supervised token": FilterCounts(3, 2 + 5)}
    assert adds_up(report)


def test_each_answer_is_cut_to_the_room_behind_the_prompt(trees: Trees) -> None:
    mixture = trees(row("abcd ABCD EF GHIJKL", [3, 2, 1], ALL_OF_THREE), filters=PairFilters(6, 3, "start"))
    assert shown(mixture) == [("abc ABC EF GHI", tuple(map(tuple, ALL_OF_THREE)))]
    assert report_of(mixture).truncated == {
        "prompts truncated": FilterCounts(1, 1),
        "answers truncated": FilterCounts(1, 1 + 3),
    }


# --- joined


def test_pairs_of_one_prompt_share_a_tree_in_the_place_of_the_first(trees: Trees) -> None:
    rows = (row("p AB C", None, [[0, 1]]), row("q X Y", None, [[0, 1]]), row("p AB DE", None, [[0, 1]]))
    mixture = trees(*rows, row("p DE C", None, [[0, 1]]))
    assert shown(mixture) == [("p AB C DE", ((0, 1), (0, 2), (2, 1))), ("q X Y", ((0, 1),))]
    assert [sample.index for sample in samples(mixture)] == [0, 1]
    report = report_of(mixture)
    assert (report.joined, report.kept) == (Regrouped(3, 3, 1, 2 + 2 + 1 + 2), FilterCounts(4, 6 + 3))
    line = "joined: 3 pairs of 3 examples share 1 trees, one for each prompt, with 7 tokens fewer"
    assert report.changes().count(line) == 1
    assert adds_up(report)


def test_equal_answers_are_one_with_the_first_value_known_and_pairs_keep_their_direction(trees: Trees) -> None:
    rows = (row("p A B", None, [[0, 1]]), row("p B A", [5, 4], [[0, 1]]), row("p A C", [3, 2], [[0, 1]]))
    mixture = trees(*rows)
    (sample,) = samples(mixture)
    assert letters(sample) == ("p", "A", "B", "C")
    assert sample.pairs == ((0, 1), (1, 0), (0, 2))
    assert sample.values == (4.0, 5.0, 2.0)
    report = report_of(mixture)
    assert report.joined.rescored == 1
    assert "answers that have several scores, of which the first counts: 1" in report.changes()


def test_a_pair_that_truncation_made_another_is_there_once(trees: Trees) -> None:
    rows = (row("p ABCD E", None, [[0, 1]]), row("p ABCE E", None, [[0, 1]]))
    mixture = trees(*rows, filters=PairFilters(4))
    assert shown(mixture) == [("p ABC E", ((0, 1),))]
    report = report_of(mixture)
    assert report.left_out == {"the same pair again": FilterCounts(1, 0)}
    assert (report.joined, adds_up(report)) == (Regrouped(1, 2, 1, 5), True)


def test_equal_answers_of_one_row_are_computed_once_and_their_pairs_with_others_are_one(trees: Trees) -> None:
    mixture = trees(row("p AB AB C", [3, 3, 1], ALL_OF_THREE))
    assert shown(mixture) == [("p AB C", ((0, 1),))]
    report = report_of(mixture)
    assert report.left_out == {"identical answers": FilterCounts(1, 0), "the same pair again": FilterCounts(1, 0)}
    assert adds_up(report)


def test_a_pair_of_ranked_answers_that_another_source_has_as_a_row_is_used_once(selections: Selections) -> None:
    ranked = [row("p AB C D", [3, 2, 1], ALL_OF_THREE), row("q A B", None, [[0, 1]])]
    # of the second source: one of the three, one of them the other way round, one of another prompt, one that is new
    apart = [row("p AB D", None, [[0, 1]]), row("p D AB", None, [[0, 1]]), row("r AB D", None, [[0, 1]])]
    mixture = mix(selections(ranked, [*apart, row("p AB EF", None, [[0, 1]])]), PairFilters(16))
    assert shown(mixture) == [
        ("p AB C D", tuple(map(tuple, ALL_OF_THREE))),
        ("q A B", ((0, 1),)),
        ("p D AB EF", ((0, 1), (1, 2))),
        ("r AB D", ((0, 1),)),
    ]
    first, second = mixture.reports
    assert (first.left_out, second.left_out) == ({}, {"the same pair in an earlier source": FilterCounts(1, 1 + 2 + 1)})
    assert isinstance(second, TreeReport)
    assert adds_up(second)


def test_prompts_that_only_begin_alike_are_not_joined(trees: Trees) -> None:
    """Truncation makes their tokens equal; their hashes tell them apart."""
    mixture = trees(row("abX A B", None, [[0, 1]]), row("acX A B", None, [[0, 1]]), filters=PairFilters(3, 1))
    assert len(mixture.documents) == 2
    assert report_of(mixture).joined == Regrouped()


def test_sources_are_not_joined_with_each_other(selections: Selections) -> None:
    mixture = mix(selections([row("p A B", None, [[0, 1]])], [row("p A C", None, [[0, 1]])]), PairFilters(8))
    assert shown(mixture) == [("p A B", ((0, 1),)), ("p A C", ((0, 1),))]


# --- cut


def test_a_tree_longer_than_a_row_becomes_several_with_its_prompt_and_each_pair_once(trees: Trees) -> None:
    """Rows of 6 tokens hold the prompt and two answers of 2: three pairs, three trees, three answers twice."""
    mixture = trees(row("pq AB CD EF", [3, 2, 1], ALL_OF_THREE), row("r X Y", None, [[0, 1]]), row_length=6)
    assert shown(mixture) == [
        ("pq AB CD", ((0, 1),)),
        ("pq AB EF", ((0, 1),)),
        ("pq CD EF", ((0, 1),)),
        ("r X Y", ((0, 1),)),
    ]
    assert [sample.index for sample in samples(mixture)] == [0, 0, 0, 1]
    report = report_of(mixture)
    assert (report.cut, report.kept) == (Regrouped(3, 1, 3, 18 - 8), FilterCounts(4, 18 + 3))
    assert "cut: 1 trees longer than a row are 3, with 10 tokens repeated" in report.changes()
    assert adds_up(report)


def test_the_next_pair_is_the_one_that_adds_the_fewest_tokens(trees: Trees) -> None:
    """Behind (A, BBBB) comes (A, CC) with 2 tokens, not (BBBB, DDD), and then (CC, BBBB) with none."""
    pairs = [[0, 1], [1, 3], [0, 2], [2, 1]]
    mixture = trees(row("p A BBBB CC DDD", None, pairs), row_length=8)
    assert shown(mixture) == [("p A BBBB CC", ((0, 1), (0, 2), (2, 1))), ("p BBBB DDD", ((0, 1),))]


@pytest.mark.parametrize("room", [2, 3, 5])
def test_all_pairs_of_many_answers_are_each_once_and_few_answers_are_repeated(trees: Trees, room: int) -> None:
    names = [chr(ord("A") + number) * 2 for number in range(8)]
    pairs = [list(pair) for pair in combinations(range(8), 2)]
    mixture = trees(row(f"pq {' '.join(names)}", list(range(8, 0, -1)), pairs), row_length=2 + 2 * room)
    found = []
    for sample in samples(mixture):
        _, *answers = letters(sample)
        assert sample.length <= 2 + 2 * room
        found += [(answers[chosen], answers[rejected]) for chosen, rejected in sample.pairs]
    assert sorted(found) == sorted((names[one], names[other]) for one, other in pairs)
    parts = len(samples(mixture))
    assert (
        parts == {2: 28, 3: 13, 5: 4}[room]
    )  # no fewer than 28, 11 and 4 sets cover all pairs of 8 (La Jolla's tables)
    assert adds_up(report_of(mixture))


def test_one_pair_that_does_not_fit_is_an_error_that_names_its_row(trees: Trees) -> None:
    mixture = trees(row("pq AB C", None, [[0, 1]]), row("pq ABC DE", None, [[0, 1]]), row_length=6)
    assert len(mixture.documents) == 2  # joined, and cut again
    message = r"jsonl:1: the prompt and its two answers have 7 tokens, more than the 6 of data\.row_length"
    with pytest.raises(ValueError, match=message):
        require_fitting(mixture.documents, 6)


def test_many_trees_cut_and_joined_account_for_every_token(trees: Trees) -> None:
    generator, rows = np.random.default_rng(0), []
    for number in range(120):
        count = int(generator.integers(2, 7))
        answers = ["".join(generator.choice(list("ABc"), int(generator.integers(1, 6)))) for _ in range(count)]
        values = generator.integers(0, 4, count).tolist()
        order = [[i, j] if values[i] >= values[j] else [j, i] for i, j in combinations(range(count), 2)]
        rows.append(row(f"p{'xyz'[: number % 4]}{number % 50} {' '.join(answers)}", values, order))
    mixture = trees(*rows, filters=PairFilters(7, 4), row_length=13)
    report = report_of(mixture)
    assert adds_up(report)
    assert min(report.joined.before, report.cut.before) > 10
    assert {"the same pair again", "identical answers", "answers identical once truncated"} <= {*report.left_out}
    assert report.kept == FilterCounts(
        sum(len(sample.pairs) for sample in samples(mixture)), sum(sample.length for sample in samples(mixture))
    )
    assert max(sample.length for sample in samples(mixture)) <= 13
    assert sum(len(sample.segments) - 1 for sample in samples(mixture)) == report.answers
    for sample in samples(mixture):  # all that is there is in a pair
        assert {place for pair in sample.pairs for place in pair} == set(range(len(sample.segments) - 1))


# --- the arrays


def test_spans_taken_and_put_together_are_the_same_documents(selections: Selections) -> None:
    rows = (row("p AB C DEF", [3, 2, 1], ALL_OF_THREE), row("q X Y", [0.1, 0], [[0, 1]]), row("r Z W", None, [[1, 0]]))
    (selection,) = selections(list(rows))
    spans = selection.spans
    assert (spans.offsets.tolist(), spans.pair_offsets.tolist()) == ([0, 4, 7, 10], [0, 3, 4, 5])
    assert spans.lengths.tolist() == [7, 3, 3]
    assert spans.pair_segments.tolist() == [[1, 2], [1, 3], [2, 3], [5, 6], [9, 8]]
    assert [str(column.dtype) for column in (spans.values, spans.pairs)] == ["float64", "int8"]  # 0.1 needs 64 bits
    again = Spans.concatenate([spans.take(np.array([2])), spans.take(np.array([True, True, False]))]).take(
        np.array([1, 2, 0])
    )
    for one, other in zip(again, spans, strict=True):
        np.testing.assert_array_equal(one, other)
    assert spans.take(np.array([0])).compact().values.dtype == np.float32
    assert cut(selection, 8) is selection


def test_a_report_of_trees_travels_as_json_and_is_added_up(trees: Trees) -> None:
    report = report_of(trees(row("pq AB CD EF", [3, 2, 1], ALL_OF_THREE), row_length=6))
    again = type(report).of_state(json.loads(json.dumps(report.state())))
    assert again == report
    twice: SourceReport = report.merged(again)
    assert isinstance(twice, TreeReport)
    assert (twice.cut, twice.prompts) == (Regrouped(6, 2, 6, 20), 6)
    cut = {"items": 3, "before": 1, "after": 3, "tokens": 10, "rescored": 0}
    assert json.loads(json.dumps(report.to_dict()))["cut"] == cut


def test_pairs_go_together_as_if_chosen_one_by_one(trees: Trees) -> None:
    draw = np.random.default_rng(3)
    words = ["ABCDEFGH"[place] * int(draw.integers(1, 7)) for place in range(8)]
    left = list(combinations(range(8), 2))
    expected = []
    while left:
        part = [left.pop(0)]
        while True:
            held = set(chain.from_iterable(part))
            tokens = {pair: sum(len(words[answer]) for answer in held | {*pair}) for pair in left}
            fitting = [pair for pair in left if tokens[pair] <= 19]
            if not fitting:
                break
            part.append(min(fitting, key=tokens.__getitem__))
            left.remove(part[-1])
        expected.append([(words[chosen], words[rejected]) for chosen, rejected in part])
    assert len(expected) > 3
    mixture = trees(row(" ".join(["p", *words]), [*range(8, 0, -1)], list(combinations(range(8), 2))), row_length=20)
    found = []
    for sample in samples(mixture):
        answers = letters(sample)[1:]
        found.append([(answers[chosen], answers[rejected]) for chosen, rejected in sample.pairs])
    assert found == expected
