"""Labeled answers and groups: what stays, what is joined, and whose answer each prompt is given besides."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from lion_lightning.data.reports.tree_reports import AnswerReport, GroupReport
from lion_lightning.data.selection.answer_filters import AnswerFilters, GroupFilters
from lion_lightning.data.selection.documents import Regrouped
from lion_lightning.data.selection.mixture import Mixture, mix, require_fitting
from lion_lightning.data.selection.spans import FilterCounts
from tests.unit.data.letters import letters
from tests.unit.data.selection.conftest import Selections, Trees


def labeled(tree: str, *labels: float) -> dict[str, Any]:
    return {"tree": tree, "values": labels}


def shown(mixture: Mixture) -> list[tuple[str, list[Any]]]:
    """Each tree, and its values with None for NaN."""
    found = []
    for place in range(len(mixture.documents)):
        sample = mixture.documents[place]
        assert not sample.pairs
        found.append((" ".join(letters(sample)), [None if math.isnan(value) else value for value in sample.values]))
    return found


def answer_report(mixture: Mixture) -> AnswerReport:
    (report,) = mixture.reports
    assert isinstance(report, AnswerReport)
    return report


# --- labeled answers


def test_answers_of_one_prompt_are_joined_and_counted_by_label(trees: Trees) -> None:
    rows = (labeled("pq AB", 1), labeled("r XYZ", 0), labeled("pq C", 0), labeled("pq DE", 1))
    mixture = trees(*rows, filters=AnswerFilters(8, mismatched=False))
    assert shown(mixture) == [("pq AB C DE", [1, 0, 1]), ("r XYZ", [0])]
    report = answer_report(mixture)
    assert (report.kept, report.desirable, report.mismatched) == (
        FilterCounts(4, 11),
        FilterCounts(2, 4),
        FilterCounts(),
    )
    assert report.means() == {"desirable": 2.0, "undesirable": 2.0}
    assert (report.joined, report.prompts, report.prompt, report.supervised) == (Regrouped(3, 3, 1, 4), 2, 3, 8)
    assert report.summary().startswith(
        "4 answers (2 desirable) to 2 prompts, 11 tokens, 72.7% supervised, 27.3% prompt"
    )
    assert report.table_row()["desirable"] == "2"
    assert mixture.documents.shared == 2 * 2


def test_an_answer_that_comes_again_is_one_and_once_with_each_label(trees: Trees) -> None:
    """Truncation makes the third and the fourth equal to the first; rows that are equal as they lie are duplicates."""
    rows = (labeled("p ABC", 1), labeled("p ABC", 1), labeled("p ABCD", 1), labeled("p ABCE", 0), labeled("p X", 0))
    mixture = trees(*rows, filters=AnswerFilters(4, mismatched=False))
    assert shown(mixture) == [("p ABC ABC X", [1, 0, 0])]
    report = answer_report(mixture)
    assert report.left_out == {"duplicate": FilterCounts(1, 4), "the same answer again": FilterCounts(1)}
    # 21 tokens are read: a duplicate of 4, two cut off, 8 kept, and prompts and an answer that are shared.
    assert (report.joined, report.kept) == (Regrouped(3, 4, 1, 3 + 3), FilterCounts(3, 8))
    assert report.read.tokens == 4 + 2 + 8 + 6


def test_an_answer_without_a_target_is_left_out_and_its_prompt_with_the_last(trees: Trees) -> None:
    mixture = trees(labeled("p ab CD", 1, 0), labeled("q xy", 1), filters=AnswerFilters(8, mismatched=False))
    assert shown(mixture) == [("p CD", [0])]
    assert answer_report(mixture).left_out == {"no supervised token": FilterCounts(2, 2 + 3)}


@pytest.mark.parametrize(("label", "printed"), [(0.5, "0.5"), (float("nan"), "nan")])
def test_a_label_that_is_none_is_an_error_that_names_its_row(trees: Trees, label: float, printed: str) -> None:
    with pytest.raises(ValueError, match=rf"jsonl:2: an answer has the label {printed}; give 1 where it is wanted"):
        trees(labeled("p A", 1), labeled("q B", label), filters=AnswerFilters(8))


# --- mismatched answers


def test_each_tree_gets_an_answer_of_the_next_prompt_in_turns_and_the_last_of_the_first(trees: Trees) -> None:
    """The answers of the next are taken in turns: of q the first (0 % 2), of r the first (1 % 1), of p the first."""
    rows = (labeled("p A BB", 1, 0), labeled("q C DD", 0, 1), labeled("r EEE", 1))
    mixture = trees(*rows, filters=AnswerFilters(8))
    assert shown(mixture) == [("p A BB C", [1, 0, None]), ("q C DD EEE", [0, 1, None]), ("r EEE A", [1, None])]
    report = answer_report(mixture)
    assert (report.kept, report.answers) == (FilterCounts(5, 4 + 4 + 4 + 1 + 3 + 1), 8)
    assert report.mismatched == FilterCounts(3, 1 + 3 + 1)
    assert report.supervised == 9  # without the mismatched ones
    assert report.units() == "5 answers (3 desirable) and 3 mismatched answers to 3 prompts"
    again = type(report).of_state(json.loads(json.dumps(report.state())))
    assert again == report


def test_a_mismatched_answer_is_cut_to_the_room_and_none_is_given_without_a_target(trees: Trees) -> None:
    rows = (labeled("pqrs A", 1), labeled("t abCDEF", 0))
    mixture = trees(*rows, filters=AnswerFilters(7))
    assert shown(mixture) == [("pqrs A abC", [1, None]), ("t abCDEF A", [0, None])]
    # Behind a prompt of four, two tokens are left: ab, of which none is trained.
    assert shown(trees(*rows, filters=AnswerFilters(6)))[0] == ("pqrs A", [1])


def test_the_next_tree_of_the_same_prompt_is_passed_over(selections: Selections) -> None:
    """Trees whose prompts have one hash and other tokens, so that they are not joined."""
    (selection,) = selections([labeled(f"{prompt} {answer}", 1) for prompt, answer in zip("pqr", "ABC", strict=True)])
    groups = np.array([[1, 1], [1, 1], [2, 2]], np.uint64)

    class Alike:
        def __getattr__(self, name: str) -> Any:
            return groups if name == "groups" else getattr(selection.table, name)

        def __len__(self) -> int:
            return len(selection.table)

    alike = type(selection)(selection.source, Alike(), selection.spans)
    assert shown(mix([alike], AnswerFilters(8))) == [("p A C", [1, None]), ("q B C", [1, None]), ("r C A", [1, None])]


def test_one_prompt_alone_has_no_mismatched_answer(trees: Trees) -> None:
    mixture = trees(labeled("p A BB", 1, 0), filters=AnswerFilters(8))
    assert shown(mixture) == [("p A BB", [1, 0])]
    assert answer_report(mixture).mismatched == FilterCounts()


def test_a_tree_is_cut_freely_and_its_mismatched_answer_stays_with_the_first(trees: Trees) -> None:
    """Rows of 8: the prompt, A and the mismatched answer of 3 leave 3, for DDD; BB and CC come behind the prompt."""
    rows = (labeled("p A BB CC DDD", 1, 0, 1, 0), labeled("q EEE", 1))
    mixture = trees(*rows, filters=AnswerFilters(8), row_length=8)
    assert shown(mixture) == [("p A EEE DDD", [1, None, 0]), ("p BB CC", [0, 1]), ("q EEE BB", [1, None])]
    report = answer_report(mixture)
    assert (report.cut, report.prompts) == (Regrouped(5, 1, 2, 1), 3)
    assert report.kept == FilterCounts(5, 8 + 5 + 6)


# --- groups


def test_groups_are_trees_as_they_are_read_and_equal_answers_stay(trees: Trees) -> None:
    rows = (labeled("p A B A", 3, 1, 2), labeled("q C D", 1, 0), labeled("p E F", 1, 0))
    mixture = trees(*rows, filters=GroupFilters(8), row_length=4)
    assert shown(mixture) == [("p A B A", [3, 1, 2]), ("q C D", [1, 0]), ("p E F", [1, 0])]
    (report,) = mixture.reports
    assert isinstance(report, GroupReport)
    assert report.summary() == (
        "3 groups of 7 answers, 10 tokens, 70.0% supervised, 30.0% prompt, answers of 1.0 tokens on average"
    )


def test_groups_of_one_answer_and_of_equal_scores_say_nothing(trees: Trees) -> None:
    rows = (labeled("p A", 1), labeled("q B C", 2, 2), labeled("r D e", 1, 0), labeled("s F g H", 1, 0, 3))
    mixture = trees(*rows, filters=GroupFilters(8))
    assert shown(mixture) == [("s F H", [1, 3])]
    assert mixture.reports[0].left_out == {
        "fewer than two answers": FilterCounts(1 + 1, 2 + 2),  # of r one answer is left
        "no supervised token": FilterCounts(2, 2),
        "scores all equal": FilterCounts(2, 3),
    }
    kept = trees(*rows, filters=GroupFilters(8, keep_equal=True))
    assert shown(kept) == [("q B C", [2, 2]), ("s F H", [1, 3])]


def test_what_is_no_group_is_refused_by_name(trees: Trees) -> None:
    with pytest.raises(
        ValueError, match=r"^source a: no row has two answers, and a group compares .*UnpairedDataModule"
    ):
        trees(labeled("p A", 1), labeled("p B", 0), filters=GroupFilters(8))
    with pytest.raises(ValueError, match=r"jsonl:2: an answer has the score nan; give each answer of a group a number"):
        trees(labeled("p A B", 1, 0), labeled("q A B", 1, float("nan")), filters=GroupFilters(8))


def test_a_group_longer_than_a_row_is_an_error_that_names_its_row_and_the_length_it_needs(trees: Trees) -> None:
    mixture = trees(labeled("p A B", 1, 0), labeled("qq CC DD EE", 1, 2, 3), filters=GroupFilters(8), row_length=6)
    message = (
        r"jsonl:2: the prompt and its 3 answers, a group that is never cut, have 8 tokens, more than the 6 of "
        r"data\.row_length \(1 of 2 are too long\); set data\.row_length to 8 or more"
    )
    with pytest.raises(ValueError, match=message):
        require_fitting(mixture.documents, 6)
