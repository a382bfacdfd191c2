"""The mixture: what is kept, repeated, cut and left out, and that the account of it adds up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lion_lightning.data.reports.source_report import SourceReport
from lion_lightning.data.selection.mixture import Mixture, deduplicate, hold_out, mix, remove_shared
from lion_lightning.data.selection.sft_filters import SFTFilters
from lion_lightning.data.selection.spans import FilterCounts
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.tokenize import tokenize
from lion_lightning.data.store.tokenized import TokenTable
from tests.unit.data.letters import Letters

Made = tuple[list[Source], list[TokenTable]]
Make = Callable[..., Made]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Tokenized sources of texts; a source is its texts, or its texts and the options of ``Source``."""

    def make(*texts: list[str], **options: Any) -> Made:
        sources = []
        for number, some in enumerate(texts):
            path = tmp_path / f"{number}-{len(list(tmp_path.iterdir()))}.jsonl"
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
            sources.append(Source(str(path), name="abc"[number], **options))
        return sources, [tokenize(source, Letters(), tmp_path) for source in sources]

    return make


def read(mixture: Mixture) -> list[str]:
    documents = mixture.documents
    samples = [documents[position] for position in range(len(documents))]
    return [bytes(sample.segments[0].input_ids.tolist()).decode() for sample in samples]


def adds_up(report: SourceReport) -> bool:
    lost, cut = (sum(counts.tokens for counts in causes.values()) for causes in (report.left_out, report.truncated))
    return report.read.tokens == report.kept.tokens - report.repeated.tokens + cut + lost


def test_the_first_of_equal_documents_stays_and_each_source_counts_its_own(make: Make) -> None:
    mixture = mix(deduplicate(*make(["aB", "cD", "aB"], ["eF", "cD"])), SFTFilters(8))
    assert read(mixture) == ["aB", "cD", "eF"]
    assert [report.left_out for report in mixture.reports] == [
        {"duplicate": FilterCounts(1, 2)},
        {"duplicate": FilterCounts(1, 2)},
    ]
    documents = mixture.documents
    assert [(documents[i].index, documents[i].source) for i in range(3)] == [(0, "a"), (1, "a"), (2, "b")]
    assert documents.lengths.tolist() == [2, 2, 2]


def test_numbers_of_examples_do_not_depend_on_what_is_left_out_later(make: Make) -> None:
    selections = deduplicate(*make(["aB", "aB", "no", "abcD", "E", "fG"]))
    documents = mix(selections, SFTFilters(3)).documents
    assert [documents[i].index for i in range(len(documents))] == [0, 4]


def test_documents_name_the_line_that_they_come_from(make: Make) -> None:
    sources, tables = make(["aB"], ["aB", "cD"])
    sources[1] = sources[1]
    assert mix(deduplicate(sources, tables), SFTFilters(8)).documents.where(1) == f"{sources[1].path}:2"


def test_fractions_above_one_repeat_after_duplicates_are_gone(make: Make) -> None:
    texts = ["aB", "aB", "cD", "eF", "gH"]
    mixture = mix(deduplicate(*make(texts, fraction=2.5)), SFTFilters(8))
    counts = {text: read(mixture).count(text) for text in texts}
    assert sorted(counts.values()) == [2, 2, 3, 3]
    assert mixture.reports[0].repeated == FilterCounts(6, 12)
    assert mixture.reports[0].kept == FilterCounts(10, 20)
    assert mixture.reports[0].supervised == 10
    again = mix(deduplicate(*make(texts, fraction=2.5)), SFTFilters(8))
    assert read(again) == read(mixture)
    shared = {mixture.documents[i].index for i in range(10)}
    assert shared == {0, 1, 2, 3}


def test_truncate_keeps_the_start_and_counts_the_rest(make: Make) -> None:
    mixture = mix(deduplicate(*make(["aBcDe", "fG"])), SFTFilters(3, "truncate"))
    assert read(mixture) == ["aBc", "fG"]
    assert mixture.reports[0].truncated == {"truncated": FilterCounts(1, 2)}
    assert mixture.reports[0].longest == 5


def test_a_document_cut_before_its_answer_is_dropped_and_counted(make: Make) -> None:
    mixture = mix(deduplicate(*make(["abcD", "eF"])), SFTFilters(3))
    assert read(mixture) == ["eF"]
    assert mixture.reports[0].left_out == {"no supervised token": FilterCounts(1, 3)}
    assert mixture.reports[0].truncated == {"truncated": FilterCounts(1, 1)}


def test_a_document_whose_only_supervised_token_is_its_first_trains_nothing(make: Make) -> None:
    mixture = mix(deduplicate(*make(["Abc", "D", "eF"])), SFTFilters(8))
    assert read(mixture) == ["eF"]
    assert mixture.reports[0].left_out == {"no supervised token": FilterCounts(2, 4)}


def test_split_cuts_into_parts_that_share_the_number(make: Make) -> None:
    mixture = mix(deduplicate(*make(["xY", "ABCDEFG", "aBcDeF"])), SFTFilters(3, "split"))
    # of the third, "G" alone predicts nothing
    assert read(mixture) == ["xY", "ABC", "DEF", "aBc", "DeF"]
    assert [mixture.documents[i].index for i in range(5)] == [0, 1, 1, 2, 2]
    report = mixture.reports[0]
    assert (report.split, report.truncated, report.left_out) == (2, {}, {"no supervised token": FilterCounts(1, 1)})
    assert report.supervised == 1 + 2 + 2 + 1 + 1


def test_drop_leaves_long_documents_out(make: Make) -> None:
    mixture = mix(deduplicate(*make(["aBcDe", "aBc", "fG"])), SFTFilters(3, "drop"))
    assert read(mixture) == ["aBc", "fG"]
    assert mixture.reports[0].left_out == {"longer than 3 tokens": FilterCounts(1, 5)}


def test_documents_masked_by_more_than_nine_tenths_are_left_out_each_for_itself(make: Make) -> None:
    selections = deduplicate(*make(["aaaaaaaaaB", "aaaaaaaaaaB", "cD"]))
    assert read(mix(selections, SFTFilters(20))) == ["aaaaaaaaaB", "aaaaaaaaaaB", "cD"]
    mixture = mix(selections, SFTFilters(20, min_supervised_share=0.1))
    assert read(mixture) == ["aaaaaaaaaB", "cD"]
    assert mixture.reports[0].left_out == {"supervised share below 0.1": FilterCounts(1, 11)}


@pytest.mark.parametrize("overlong", ["truncate", "split", "drop"])
@pytest.mark.parametrize("fraction", [0.6, 1.0, 2.5])
def test_tokens_in_are_tokens_out_and_reported_drops(make: Make, overlong: Any, fraction: float) -> None:
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(list("abcD"), size=size)) for size in generator.integers(1, 30, size=300)]
    made = make(texts[:200], texts[150:], fraction=fraction)
    for side in hold_out(deduplicate(*made), 0.3):
        mixture = mix(side, SFTFilters(12, overlong, 0.15))
        assert all(adds_up(report) for report in mixture.reports)
        assert sum(report.kept.tokens for report in mixture.reports) == int(mixture.documents.lengths.sum())
        samples = [mixture.documents[position] for position in range(len(mixture.documents))]
        assert [sample.length for sample in samples] == mixture.documents.lengths.tolist()
        targets = sum(int(sample.segments[0].supervised[1:].sum()) for sample in samples)
        assert targets == sum(report.supervised for report in mixture.reports)
        assert max(mixture.documents.lengths) <= 12


def test_held_out_documents_are_on_one_side_only_and_stay_there(make: Make) -> None:
    texts = [f"q{number}A" for number in range(1000)]
    train, held = hold_out(deduplicate(*make(texts, texts[::2])), 0.2)
    trained, validated = set(read(mix(train, SFTFilters(8)))), set(read(mix([held[0]], SFTFilters(8))))
    assert trained | validated == set(texts)
    assert not trained & validated
    assert 150 < len(validated) < 250
    # the choice hangs on the document, not on its neighbours or its place
    _, alone = hold_out(deduplicate(*make(list(reversed(texts[:100])))), 0.2)
    assert set(read(mix(alone, SFTFilters(8)))) == validated & set(texts[:100])


def test_held_out_documents_are_not_repeated(make: Make) -> None:
    train, held = hold_out(deduplicate(*make([f"q{number}A" for number in range(100)], fraction=3)), 0.5)
    assert mix(train, SFTFilters(8)).reports[0].repeated.documents == 2 * len(train[0].spans.numbers)
    assert mix(held, SFTFilters(8)).reports[0].repeated == FilterCounts()


def test_what_a_validation_source_holds_is_not_trained_on(make: Make) -> None:
    train, validation = deduplicate(*make(["aB", "cD", "eF"])), deduplicate(*make(["cD", "gH"]))
    mixture = mix(remove_shared(train, validation, "in a validation source"), SFTFilters(8))
    assert read(mixture) == ["aB", "eF"]
    assert mixture.reports[0].left_out == {"in a validation source": FilterCounts(1, 2)}


def test_a_source_without_any_supervised_token_is_refused_by_name(make: Make) -> None:
    with pytest.raises(ValueError, match=r"^source b: no token of its 2 examples is supervised.*`mask`"):
        mix(deduplicate(*make(["aB"], ["no", "Cue"])), SFTFilters(8))


def test_a_mixture_that_ends_empty_is_refused_with_the_counts(make: Make) -> None:
    message = r"^the mixture is empty \(a: 0 .* duplicate: 1 \(4 tokens\); left out, longer than 3 tokens: 1 .* \| b: 0"
    with pytest.raises(ValueError, match=message):
        mix(deduplicate(*make(["aBcD", "aBcD"], ["eFgH"])), SFTFilters(3, "drop"))


def test_a_report_is_plain_data(make: Make) -> None:
    (report,) = mix(deduplicate(*make(["aB", "aB", "cdEF"])), SFTFilters(3)).reports
    assert json.loads(json.dumps(report.to_dict())) == {
        "name": "a",
        "rows": 3,
        "skipped": 0,
        "read": {"documents": 3, "tokens": 8},
        "left_out": {"duplicate": {"documents": 1, "tokens": 2}},
        "truncated": {"truncated": {"documents": 1, "tokens": 1}},
        "split": 0,
        "repeated": {"documents": 0, "tokens": 0},
        "kept": {"documents": 2, "tokens": 5},
        "supervised": 2,
        "longest": 4,
        "messages": {"form": {"text | text": 3}},
        "supervised_share": 0.4,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1}, r"^data\.max_length is 1"),
        ({"overlong": "wrap"}, r"^data\.overlong: 'wrap' is unknown; choose truncate, split, drop"),
        ({"min_supervised_share": 90}, r"^data\.min_supervised_share is 90; .* 0 to 1"),
        ({"min_supervised_share": float("nan")}, r"^data\.min_supervised_share is nan"),
    ],
)
def test_rules_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SFTFilters(**{"max_length": 8} | options)


def test_no_text_and_no_token_is_held_in_memory(make: Make) -> None:
    """A document costs under 100 bytes, however long it is."""
    import pickle

    documents = mix(
        deduplicate(*make([f"{number:04d}" + "aB" * 500 for number in range(1000)])), SFTFilters(2000)
    ).documents
    assert int(documents.lengths.sum()) > 1_000_000
    assert len(pickle.dumps(documents)) < 100 * 1000
