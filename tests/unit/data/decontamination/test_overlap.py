"""Overlap of texts by n-grams of words: TÜLU 3's rule with values by hand, and against a direct count."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lion_lightning.data.decontamination import overlap
from lion_lightning.data.decontamination.overlap import NgramIndex, split_words

WORDS = [f"w{number}" for number in range(1, 20)]


def words(first: int, last: int) -> list[str]:
    """Words of an item by their numbers, from 1, with others around them."""
    return ["before", *WORDS[first - 1 : last], "after"]


def found(index: NgramIndex, documents: list[list[str]], above: float = 0.5) -> dict[tuple[int, int], float]:
    shares: dict[tuple[int, int], float] = {}
    for alike in index.overlaps(documents, above):
        for text, share in zip(alike.texts.tolist(), alike.shares.tolist(), strict=True):
            shares |= {(document, text): share for document in alike.documents}
    return shares


def test_words_end_at_white_space_and_at_the_listed_marks() -> None:
    text = "Is, it. a? b! c: d; e( f) g\" h-i\nj\\k\tl  m's"
    assert split_words(text) == [*["is", "it", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"], "m's"]
    assert split_words(" -.- ") == []


@pytest.mark.parametrize(
    ("size", "documents", "expected"),
    [
        (12, [words(1, 8)], {(0, 0): 8 / 12}),
        (16, [words(1, 8)], {}),  # exactly one half
        (12, [words(1, 8), words(5, 12)], {(0, 0): 8 / 12, (1, 0): 8 / 12}),  # never of two rows together
        (12, [words(1, 8) + words(5, 12)], {(0, 0): 1.0}),
        (12, [words(1, 7)], {}),
        (12, [words(3, 11)], {(0, 0): 9 / 12}),
        (12, [words(1, 12) * 3], {(0, 0): 1.0}),
        (7, [words(1, 7), WORDS[:7]], {(0, 0): 1.0, (1, 0): 1.0}),  # no 8-gram: all of it
        (7, [words(1, 6), words(2, 7)], {}),
        (1, [["w2"], ["w1"]], {(1, 0): 1.0}),
        (12, [[], ["before"]], {}),
        (12, [], {}),
    ],
)
def test_the_share_of_an_item_s_words(
    size: int, documents: list[list[str]], expected: dict[tuple[int, int], float]
) -> None:
    assert found(NgramIndex([WORDS[:size]], 8), documents) == expected


def test_the_threshold_is_strict() -> None:
    index = NgramIndex([WORDS[:16]], 8)
    assert found(index, [words(1, 8)], 0.49) == {(0, 0): 0.5}
    assert found(NgramIndex([WORDS[:12]], 8), [words(1, 8)], 8 / 12) == {}


def direct(text: list[str], document: list[str], ngram: int) -> float:
    """The rule, word by word."""
    length = min(ngram, len(text))
    grams = {tuple(document[start : start + length]) for start in range(len(document) - length + 1)}
    matched: set[int] = set()
    for start in range(len(text) - length + 1):
        if tuple(text[start : start + length]) in grams:
            matched.update(range(start, start + length))
    return len(matched) / len(text)


@pytest.mark.parametrize("collide", [False, True])
@pytest.mark.parametrize("most", [4_000_000, 1])
def test_texts_of_few_words_overlap_as_a_direct_count_says(
    collide: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all hashes are equal, and where documents are looked at one by one."""
    if collide:
        monkeypatch.setattr(overlap, "_FACTOR", np.uint64(0))  # the hash is that of the last word
    monkeypatch.setattr(overlap, "_MAX_PLACES", most)
    draw = random.Random(0)
    texts = [draw.choices("abc", k=draw.randint(1, 12)) for _ in range(30)]
    documents = [draw.choices("abcx", k=draw.randint(0, 30)) for _ in range(40)]
    documents += documents[:5]  # alike ones are added up once
    shares = {(d, t): direct(text, doc, 3) for d, doc in enumerate(documents) for t, text in enumerate(texts)}
    expected = {pair: share for pair, share in shares.items() if share > 0.3}
    assert len(expected) > 100
    assert found(NgramIndex(texts, 3), documents, 0.3) == expected
