"""Which pairs stay, how they are cut, and that every token that goes is accounted for."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lion_lightning.data.reports.tree_reports import PairReport
from lion_lightning.data.selection.mixture import Mixture, deduplicate, hold_out, mix, remove_shared
from lion_lightning.data.selection.pair_filters import PairFilters
from lion_lightning.data.selection.spans import FilterCounts
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.tokenize import tokenize
from lion_lightning.data.store.tokenized import TokenTable
from lion_lightning.types import Sample
from tests.unit.data.letters import LetterPairs, letters

Made = tuple[list[Source], list[TokenTable]]
Make = Callable[..., Made]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Tokenized sources of pairs: ``"prompt chosen rejected"`` or ``"prompt chosen rejected margin"`` each.

    A token a letter; capitals are trained.
    """

    def make(*pairs: list[str], **options: Any) -> Made:
        sources = []
        for number, some in enumerate(pairs):
            path = tmp_path / f"{number}-{len(list(tmp_path.iterdir()))}.jsonl"
            path.write_text(json.dumps({"pairs": some}))
            sources.append(Source(str(path), name="abc"[number], **options))
        return sources, [tokenize(source, LetterPairs(), tmp_path) for source in sources]

    return make


def mixed(made: Made, *rules: Any, **more: Any) -> Mixture:
    return mix(deduplicate(*made), PairFilters(*rules, **more))


def read(mixture: Mixture) -> list[str]:
    """Prompt, chosen and rejected of each pair of each tree."""
    found = []
    for sample in samples(mixture):
        prompt, *answers = letters(sample)
        found += [f"{prompt} {answers[chosen]} {answers[rejected]}" for chosen, rejected in sample.pairs]
    return found


def samples(mixture: Mixture) -> list[Sample]:
    return [mixture.documents[place] for place in range(len(mixture.documents))]


def report_of(mixture: Mixture) -> PairReport:
    (report,) = mixture.reports
    assert isinstance(report, PairReport)
    return report


def test_a_pair_is_read_as_a_prompt_and_two_answers_to_it(make: Make) -> None:
    sample = mixed(make(["ab CD EFg"]), 16).documents[0]
    assert letters(sample) == ("ab", "CD", "EFg")
    assert [piece.parent for piece in sample.segments] == [-1, 0, 0]
    assert [piece.supervised.tolist() for piece in sample.segments] == [[False] * 2, [True] * 2, [True, True, False]]
    assert (sample.index, sample.source, sample.length) == (0, "a", 7)


def test_identical_answers_are_left_out_and_those_of_equal_length_alone_are_not(make: Make) -> None:
    mixture = mixed(make(["q AB AB", "q AB AC", "q AB Ab"]), 16)
    assert read(mixture) == ["q AB AC", "q AB Ab"]
    assert report_of(mixture).left_out == {"identical answers": FilterCounts(1, 5)}


def test_ties_and_scores_against_the_label_are_left_out_and_unknown_scores_are_not(make: Make) -> None:
    mixture = mixed(make(["q A B 0", "r A BC -0.5", "s A B 0.01", "t A B"]), 16)
    assert read(mixture) == ["s A B", "t A B"]
    assert report_of(mixture).left_out == {
        "equal scores": FilterCounts(1, 3),
        "scores against the label": FilterCounts(1, 4),
    }


def test_identical_answers_with_equal_scores_count_once_as_identical(make: Make) -> None:
    assert report_of(mixed(make(["q A A 0", "r A B"]), 16)).left_out == {"identical answers": FilterCounts(1, 3)}


def test_margins_below_the_least_are_left_out_and_those_at_it_are_not(make: Make) -> None:
    mixture = mixed(make(["q A B 0.9", "r A B 1", "s A B 3", "t A B"]), 16, min_margin=1.0)
    assert read(mixture) == ["r A B", "s A B", "t A B"]
    assert report_of(mixture).left_out == {"score margin below 1": FilterCounts(1, 3)}


def test_a_least_margin_without_any_scores_is_told(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        mixed(make(["q A B 2", "r A B"]), 16, min_margin=1.0)
        assert not caplog.records
        mixed(make(["q A B", "r A B"]), 16, min_margin=1.0)
    assert "source a: data.min_margin is 1, but no pair has scores" in caplog.text


@pytest.mark.parametrize(("keep", "kept"), [("start", "abc"), ("end", "cde")])
def test_the_prompt_is_cut_before_the_answers(make: Make, keep: Any, kept: str) -> None:
    """Of abcde 3 tokens stay, which leaves room for 4 of each answer."""
    mixture = mixed(make(["abcde UVWXYZ KL", "f M N"]), 7, 3, keep)
    assert read(mixture) == [f"{kept} UVWX KL", "f M N"]
    assert report_of(mixture).truncated == {
        "prompts truncated": FilterCounts(1, 2),
        "answers truncated": FilterCounts(1, 2),
    }


def test_without_a_limit_of_its_own_the_prompt_stays_whole(make: Make) -> None:
    mixture = mixed(make(["abcde UVWXYZ KLM"]), 7)
    assert read(mixture) == ["abcde UV KL"]
    assert report_of(mixture).truncated == {"answers truncated": FilterCounts(1, 5)}


def test_max_length_counts_the_prompt_and_one_answer(make: Make) -> None:
    mixture = mixed(make(["abc WXYZ KLMN"]), 7)
    assert read(mixture) == ["abc WXYZ KLMN"]
    assert report_of(mixture).truncated == {}


def test_the_first_token_of_a_cut_answer_is_still_a_target(make: Make) -> None:
    """Its predictor is the prompt's last token, so one token of an answer is enough."""
    mixture = mixed(make(["abc Wxyz Klmn"]), 4)
    assert read(mixture) == ["abc W K"]
    assert report_of(mixture).supervised == 2


def test_a_side_left_without_a_supervised_token_drops_the_pair_and_is_counted(make: Make) -> None:
    mixture = mixed(make(["ab cdE FG", "abcd X Y", "ab C D"]), 4)
    assert read(mixture) == ["ab C D"]
    # what is left of the first is "ab cd FG"; nothing is left of the second's answers
    report = report_of(mixture)
    assert report.truncated == {"answers truncated": FilterCounts(2, 1 + 2)}
    assert report.left_out == {"an answer without a supervised token": FilterCounts(2, 6 + 4)}


def test_answers_that_the_cut_made_identical_are_left_out_and_counted_apart(make: Make) -> None:
    mixture = mixed(make(["ab CDE CDF", "ab XY XZ"]), 4)
    assert read(mixture) == ["ab XY XZ"]
    report = report_of(mixture)
    assert report.left_out == {"answers identical once truncated": FilterCounts(1, 6)}
    assert report.truncated == {"answers truncated": FilterCounts(1, 2)}


def test_the_length_ratio_is_of_the_answers_after_the_cut_whichever_is_longer(make: Make) -> None:
    mixture = mixed(make(["q ABCDEF GHI", "q AB CDEFG", "q AB CDEF", "qr AB CDEFGHI"]), 6, max_length_ratio=2.0)
    # 5 over 3, 5 over 2, 4 over 2, 4 over 2
    assert read(mixture) == ["q ABCDE GHI", "q AB CDEF", "qr AB CDEF"]
    assert report_of(mixture).left_out == {"length ratio above 2": FilterCounts(1, 8)}


def test_a_report_of_pairs_has_the_share_of_the_prompt_and_the_mean_lengths(make: Make) -> None:
    report = report_of(mixed(make(["abcdef ABCd EF", "gh IJ KLmn", "q A A"]), 16))
    assert (report.prompt, report.chosen, report.rejected) == (8, 6, 6)
    assert report.prompt_share == 8 / 20
    assert report.means() == {"chosen": 3.0, "rejected": 3.0}
    assert str(report) == (
        "a: 2 pairs of 4 answers to 2 prompts, 20 tokens, 45.0% supervised, 40.0% prompt, answers of 3.0 (chosen) and "
        "3.0 (rejected) tokens on average; left out, identical answers: 1 (3 tokens); plain text, without a chat "
        "template: 1 rows"
    )
    assert json.loads(json.dumps(report.to_dict())) == {
        "name": "a",
        "rows": 1,
        "skipped": 0,
        "read": {"pairs": 3, "tokens": 23},
        "left_out": {"identical answers": {"pairs": 1, "tokens": 3}},
        "truncated": {},
        "split": 0,
        "repeated": {"pairs": 0, "tokens": 0},
        "kept": {"pairs": 2, "tokens": 20},
        "supervised": 3 + 2 + 2 + 2,
        "longest": 10,
        "messages": {"plain text": {"": 1}},
        "prompts": 2,
        "answers": 4,
        "joined": {"items": 0, "before": 0, "after": 0, "tokens": 0, "rescored": 0},
        "cut": {"items": 0, "before": 0, "after": 0, "tokens": 0, "rescored": 0},
        "prompt": 8,
        "chosen": 6,
        "rejected": 6,
        "supervised_share": 0.45,
        "prompt_share": 0.4,
        "mean_chosen": 3.0,
        "mean_rejected": 3.0,
    }


def test_repeated_pairs_weigh_in_the_means(make: Make) -> None:
    report = report_of(mixed(make(["q A BCD", "r EFG H"], fraction=1.5), 16))
    assert (report.kept.documents, report.repeated.documents, report.kept.tokens) == (3, 1, 15)
    assert report.chosen + report.rejected + report.prompt == 15
    assert report.prompt == 3
    assert report.supervised == 12


def test_sharing_saves_each_prompt_once(make: Make) -> None:
    assert mixed(make(["abc D E", "fg H I"]), 16).documents.shared == 5


def test_no_prompt_is_on_both_sides_though_it_has_many_pairs(make: Make) -> None:
    pairs = [f"q{number} {chosen} {rejected}" for number in range(300) for chosen, rejected in ("AB", "AC", "BC")]
    train, held = hold_out(deduplicate(*make(pairs, pairs[::4])), 0.2)
    sides = [{text.split()[0] for text in read(mix(side, PairFilters(16)))} for side in (train[:1], held[:1])]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 300
    assert 30 < len(sides[1]) < 90
    kept = [sum(len(selection.spans.numbers) for selection in side) for side in (train, held)]
    assert kept == [3 * len(sides[0]), 3 * len(sides[1])]


def test_a_prompt_that_a_validation_source_holds_is_not_trained_on_with_any_answers(make: Make) -> None:
    train, validation = deduplicate(*make(["p A B", "q A B", "q B C", "r D E", "r E F"])), make(["q X Y", "s A B"])
    mixture = mix(remove_shared(train, deduplicate(*validation), "in a validation source"), PairFilters(16))
    assert read(mixture) == ["p A B", "r D E", "r E F"]
    assert report_of(mixture).left_out == {"in a validation source": FilterCounts(2, 6)}


def test_the_same_pair_scored_twice_is_a_duplicate_and_the_turned_one_is_not(make: Make) -> None:
    mixture = mixed(make(["q A B 1", "q A B 2", "q B A 1"]), 16)
    assert read(mixture) == ["q A B", "q B A"]
    assert report_of(mixture).left_out == {"duplicate": FilterCounts(1, 3)}


def random_pairs(count: int) -> list[str]:
    generator = np.random.default_rng(0)

    def word(most: int) -> str:
        return "".join(generator.choice(list("abAB"), size=generator.integers(1, most)))

    margins = generator.integers(-2, 4, size=count)
    return [f"{word(12)} {word(6)} {word(9)}{f' {margin}' if margin else ''}" for margin in margins]


@pytest.mark.parametrize("keep", ["start", "end"])
@pytest.mark.parametrize("fraction", [1.0, 2.5])
def test_tokens_in_are_tokens_kept_and_tokens_reported(make: Make, keep: Any, fraction: float) -> None:
    pairs = random_pairs(600)
    alike = [f"{letter} ABCDEFGHI ABCDEFGHJ 3" for letter in "abcdefgh"]  # once cut
    made = make(pairs[:400], [*pairs[350:], *alike, "q A A", "q A B 0"], fraction=fraction)
    filters, causes = PairFilters(9, 5, keep, 2.0, 1.5), set()
    for side in hold_out(deduplicate(*made), 0.3):
        mixture = mix(side, filters)
        for report in mixture.reports:
            assert isinstance(report, PairReport)
            gone = sum(counts.tokens for counts in (*report.left_out.values(), *report.truncated.values()))
            gone += report.joined.tokens
            assert report.read.tokens == report.kept.tokens - report.repeated.tokens + gone
            dropped = sum(counts.documents for counts in report.left_out.values())
            assert report.read.documents == report.kept.documents - report.repeated.documents + dropped
            causes |= {*report.left_out, *report.truncated}
        assert sum(report.kept.tokens for report in mixture.reports) == sum(
            sample.length for sample in samples(mixture)
        )
        # the definition of what stays, said again by the samples
        pairs_left = [pair.split(" ") for pair in read(mixture)]
        assert len(pairs_left) == sum(report.kept.documents for report in mixture.reports)
        for prompt, chosen, rejected in pairs_left:
            assert 1 <= len(prompt) <= 5
            assert len(prompt) + max(len(chosen), len(rejected)) <= 9
            assert chosen != rejected
            assert max(len(chosen), len(rejected)) <= 1.5 * min(len(chosen), len(rejected))
            assert not chosen.islower()
            assert not rejected.islower()
        trained = [
            sum(letter.isupper() for letter in prompt[1:] + "".join(answers))
            for prompt, *answers in map(letters, samples(mixture))
        ]
        assert sum(trained) == sum(report.supervised for report in mixture.reports)
    assert causes == {
        "duplicate",
        "held out for validation",
        "used for training",
        "identical answers",
        "equal scores",
        "scores against the label",
        "score margin below 2",
        "prompts truncated",
        "answers truncated",
        "an answer without a supervised token",
        "answers identical once truncated",
        "length ratio above 1.5",
    }


def test_the_same_rules_in_plain_python(make: Make) -> None:
    """Each pair for itself, in the order of the rules."""

    def kept(pair: str) -> str | None:
        prompt, chosen, rejected, *margin = pair.split(" ")
        if chosen == rejected or (margin and float(margin[0]) < 1):
            return None
        prompt = prompt[-5:]
        chosen, rejected = chosen[: 9 - len(prompt)], rejected[: 9 - len(prompt)]
        if chosen.islower() or rejected.islower() or chosen == rejected:
            return None
        long, short = sorted((len(chosen), len(rejected)), reverse=True)
        return f"{prompt} {chosen} {rejected}" if long <= 2 * short else None

    pairs = [*random_pairs(500), "abcdefghij ABCDEFG ABCDEFH"]
    unique = {pair.rsplit(" ", 1)[0] if pair.count(" ") == 3 else pair: pair for pair in reversed(pairs)}
    expected = {text for pair in reversed(unique.values()) if (text := kept(pair))}  # each once, though cut to equals
    assert sorted(read(mixed(make(pairs), 9, 5, "end", 1.0, 2.0))) == sorted(expected)
    assert 50 < len(expected) < 400


def test_a_mixture_that_ends_empty_says_what_became_of_the_pairs(make: Make) -> None:
    message = (
        r"^the mixture is empty \(a: 0 pairs of 0 answers to 0 prompts, .*equal scores: 1 \(3 tokens\).*\); fix what "
        "leaves its pairs out"
    )
    with pytest.raises(ValueError, match=message):
        mixed(make(["q A B 0"]), 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1}, r"^data\.max_length is 1"),
        ({"max_prompt_length": 0}, r"^data\.max_prompt_length is 0; .*less than data\.max_length \(16\)"),
        ({"max_prompt_length": 16}, r"^data\.max_prompt_length is 16"),
        ({"keep": "middle"}, r"^data\.keep: 'middle' is unknown; choose start or end"),
        ({"min_margin": -1.0}, r"^data\.min_margin is -1\.0"),
        ({"min_margin": float("nan")}, r"^data\.min_margin is nan"),
        ({"min_margin": float("inf")}, r"^data\.min_margin is inf"),
        ({"max_length_ratio": 0.5}, r"^data\.max_length_ratio is 0\.5; .*1 or more"),
        ({"max_length_ratio": float("nan")}, r"^data\.max_length_ratio is nan"),
    ],
)
def test_rules_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairFilters(**{"max_length": 16} | options)
