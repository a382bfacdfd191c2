"""What corruptions make of a file: worked out by hand, and taken back on thousands of random files."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from lion_lightning.data.infill import Corrupted, FillInMiddle, PrefixLM, SpanInfill
from lion_lightning.data.infill.spans import draw_spans
from tests.unit.data.infill.files import BOS, EOM, EOS, MASKS, SEP, SPECIAL, file_of, ids


def test_two_spans_of_ten_tokens() -> None:
    made = SpanInfill(spans=2).lay_out(file_of(range(10)), SPECIAL, np.array([2, 7]), np.array([3, 1]))
    assert made.context.tolist() == [0, 1, MASKS[0], 5, 6, MASKS[1], 8, 9, EOS, SEP]
    assert made.answer.tolist() == [MASKS[0], 2, 3, 4, EOM, MASKS[1], 7, EOM]
    (segment,) = SpanInfill(spans=2).segments(made)
    assert len(segment.input_ids) == 18 == 10 + 3 * 2 + 2  # n + 3k + 2
    assert segment.supervised.all()  # but for the first of a document, 17 targets
    assert segment.parent == -1


def test_spans_at_the_ends_of_a_file_leave_empty_gaps() -> None:
    made = SpanInfill(spans=2).lay_out(file_of(range(4)), SPECIAL, np.array([0, 3]), np.array([1, 1]))
    assert made.context.tolist() == [MASKS[0], 1, 2, MASKS[1], EOS, SEP]


def test_bos_stays_first_and_eos_is_not_written_twice() -> None:
    file = SPECIAL.file(ids([BOS, 0, 1, 2, EOS]))
    made = SpanInfill(spans=1).lay_out(file, SPECIAL, np.array([1]), np.array([1]))
    assert np.concatenate(made).tolist() == [BOS, 0, MASKS[0], 2, EOS, SEP, MASKS[0], 1, EOM]
    middle = FillInMiddle().lay_out(file, SPECIAL, 1, 2, spm=False)
    assert np.concatenate(middle).tolist() == [BOS, SEP, 0, EOM, 2, MASKS[0], 1, EOS]


def test_a_truncated_file_has_no_eos() -> None:
    assert [part.tolist() for part in SPECIAL.file(ids([BOS, 5]))] == [[BOS], [5], []]
    assert [len(part) for part in SPECIAL.file(ids([EOS]))] == [0, 0, 1]
    assert [len(part) for part in SPECIAL.file(ids([]))] == [0, 0, 0]


def parts(tokens: list[int]) -> Iterator[tuple[int, list[int]]]:
    """Each mask with the tokens behind it, up to the next."""
    found: list[tuple[int, list[int]]] = [(-1, [])]
    for token in tokens:
        if token in MASKS:
            found.append((token, []))
        else:
            found[-1][1].append(token)
    yield from found


def undone(made: Corrupted) -> list[int]:
    """The file that spans were taken out of."""
    context, answer = made.context.tolist(), made.answer.tolist()
    assert context[-2:] == [EOS, SEP]
    spans = dict(parts(answer))
    del spans[-1]
    assert all(span[-1] == EOM for span in spans.values())
    file: list[int] = []
    for mask, gap in parts(context[:-2]):
        file += [*spans.pop(mask, [EOM])[:-1], *gap]
    assert not spans
    return file


def test_3000_random_files_come_back() -> None:
    rng = np.random.default_rng(1)
    corruption = SpanInfill(spans=4)
    numbers = set()
    for size in rng.integers(2, 40, 3000).tolist():
        file = file_of(rng.integers(0, 50, size))
        made = corruption.apply(file, SPECIAL, rng)
        assert undone(made) == file.body.tolist()
        spans = sum(mask in made.answer for mask in MASKS)
        assert len(made.context) + len(made.answer) == size + 3 * spans + 2 <= size + corruption.extra
        numbers.add(spans)
    assert numbers == {1, 2, 3, 4}


def test_3000_middles_come_back_in_both_orders() -> None:
    rng, corruption, orders = np.random.default_rng(1), FillInMiddle(), []
    before, hole, fill = SPECIAL.own[:3].tolist()
    for size in rng.integers(2, 40, 3000).tolist():
        file = file_of(rng.integers(0, 50, size))
        made = corruption.apply(file, SPECIAL, rng)
        context, middle = made.context.tolist(), made.answer.tolist()[:-1]
        assert context[0] == before
        assert middle
        first, second = context.index(hole), context.index(fill)
        assert first < second
        psm = context[1:first] + middle + context[first + 1 : second]  # <prefix> prefix <suffix> suffix <middle>
        spm = context[second + 1 :] + middle + context[2:second]  # <prefix> <suffix> suffix <middle> prefix
        assert file.body.tolist() == (psm if second == len(context) - 1 else spm)
        if first > 1 or second < len(context) - 1:  # without a prefix both orders are the same
            orders.append(first > 1)
    assert len(orders) > 2500
    assert np.mean(orders) == pytest.approx(0.5, abs=0.04)  # 4 standard deviations


def test_orders_of_the_middle_by_hand() -> None:
    file, (before, hole, fill) = file_of(range(6)), SPECIAL.own[:3].tolist()
    psm, spm = (FillInMiddle().lay_out(file, SPECIAL, 2, 4, order) for order in (False, True))
    assert psm.context.tolist() == [before, 0, 1, hole, 4, 5, fill]
    assert spm.context.tolist() == [before, hole, 4, 5, fill, 0, 1]
    assert psm.answer.tolist() == spm.answer.tolist() == [2, 3, EOS]


def test_a_middle_may_end_with_a_token_of_its_own() -> None:
    special = SPECIAL._replace(own=ids([100, 101, 102, 103]))
    made = FillInMiddle(end="<EOT>").lay_out(file_of(range(3)), special, 1, 2, spm=False)
    assert made.answer.tolist() == [1, 103]


def test_spans_never_touch_and_cover_a_uniform_share() -> None:
    rng, shares = np.random.default_rng(0), []
    for _ in range(4000):
        starts, lengths = draw_spans(20, 4, rng)
        assert 1 <= len(starts) <= 4
        assert lengths.min() >= 1
        assert starts[0] >= 0
        assert starts[-1] + lengths[-1] <= 20
        assert (starts[1:] > (starts + lengths)[:-1]).all()  # a kept token lies between
        shares.append(lengths.sum() / 20)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)  # 4 standard deviations are 0.018
    assert np.quantile(shares, [0.1, 0.9]) == pytest.approx([0.1, 0.9], abs=0.051)


def test_spans_are_joined_where_too_few_tokens_are_kept() -> None:
    rng = np.random.default_rng(0)
    assert all(draw_spans(2, 4, rng)[1].tolist() == [1] for _ in range(20))
    assert max(len(draw_spans(3, 4, rng)[1]) for _ in range(200)) == 2  # one kept token between two spans


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SpanInfill(spans=0), "spans is 0; give at least 1"),
        (lambda: SpanInfill(mask="<mask>"), "for all 4 spans"),
        (lambda: FillInMiddle(spm=1.5), "spm is 1.5; give a share from 0 to 1"),
        (lambda: PrefixLM(PrefixLM()), "infill is a PrefixLM, too"),
    ],
)
def test_refusals(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]


def test_tokens() -> None:
    assert SpanInfill(spans=2).tokens == ("<sep>", "<eom>", "<mask_1>", "<mask_2>")
    assert SpanInfill(spans=1, mask="<hole>", separator="<s>", end="<e>").tokens == ("<s>", "<e>", "<hole>")
    assert FillInMiddle(end="<EOT>").tokens == ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<EOT>")
