"""Overlap of texts with a few others, by n-grams of words that are hashed and then compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise, repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lion_lightning.data.sources.readers import Numbers

Hashes = npt.NDArray[np.uint64]

_SEPARATORS = str.maketrans(dict.fromkeys(',.?!:;()"-\\', " "))
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MAX_PAIRS = 4_000_000
"""Pairs of equal n-grams that are held at once, and those of one document more."""


def split_words(text: str) -> list[str]:
    r"""Split a text into lower-case words.

    Words end at white space and at any of ``, . ? ! : ; ( ) " - \``, as those of TÜLU 3's code, which are lost.

    >>> split_words('Is 2-1 "one"?')
    ['is', '2', '1', 'one']
    """
    return text.lower().translate(_SEPARATORS).split()


class Overlaps(NamedTuple):
    """Pairs of a document and a benchmark text that overlap.

    Attributes:
        documents: ``(pairs,)`` position of the document.
        texts: ``(pairs,)`` position of the benchmark text.
        shares: ``(pairs,)`` share of the text's words in n-grams that the document has too; 1 for a short text in it.
    """

    documents: Numbers
    texts: Numbers
    shares: npt.NDArray[np.float64]


class NgramIndex:
    """The n-grams of benchmark texts, to be found in documents.

    A text of ``ngram`` words or more overlaps with a document by the share of its words that are in an n-gram which the
    document has too. A shorter text has no n-gram and overlaps, wholly, with a document that contains all of it.

    Args:
        texts: Words of each benchmark text; at least one each.
        ngram: Words of an n-gram.
    """

    def __init__(self, texts: Sequence[Sequence[str]], ngram: int) -> None:
        self.ngram = ngram
        self._numbers: dict[str, int] = {}  # of the benchmarks' words, from 1; 0 is any other word
        flat = [self._numbers.setdefault(word, len(self._numbers) + 1) for word in chain.from_iterable(texts)]
        self._words = np.array(flat, np.int64)
        self.sizes: Numbers = np.array([len(text) for text in texts], np.int64)
        self._ends = np.cumsum(self.sizes)
        owners = np.repeat(np.arange(len(texts)), self.sizes)
        left = self._ends[owners] - np.arange(len(flat))  # words of the text from each place on
        self._owners = owners
        self._places: dict[int, tuple[Hashes, Numbers]] = {}  # by length: sorted hashes, and where each n-gram begins
        lengths = np.minimum(self.sizes, ngram)
        for length, hashes in _window_hashes(self._words, sorted(set(lengths.tolist()))):
            places = np.flatnonzero((lengths[owners] == length) & (left >= length))
            order = np.argsort(hashes[places], kind="stable")
            self._places[length] = hashes[places][order], places[order]

    def overlaps(self, documents: Sequence[Sequence[str]], above: float) -> Overlaps:
        """Pairs of a document and a text whose overlap is above a share.

        Args:
            documents: Words of each document.
            above: Overlaps up to this share are left out.
        """
        words, origins = self._known(documents)
        found = [Overlaps(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
        for length, hashes in _window_hashes(words, self._places):
            starts = _without_zeros(words, length)
            for firsts, places in self._equal(words, starts, hashes[starts], origins, length):
                found.append(self._summed(origins[firsts], places, length))
        owners, places, shares = (np.concatenate([part[column] for part in found]) for column in range(3))
        chosen = shares > above
        return Overlaps(owners[chosen], places[chosen], shares[chosen])

    def _known(self, documents: Sequence[Sequence[str]]) -> tuple[Numbers, Numbers]:
        """Numbers of all words, with a 0 behind each document, and the document of each."""
        sizes = [len(document) + 1 for document in documents]
        flat = chain.from_iterable(chain(document, [""]) for document in documents)
        words = np.fromiter(map(self._numbers.get, flat, repeat(0)), np.int64, sum(sizes))
        return words, np.repeat(np.arange(len(sizes)), sizes)

    def _equal(
        self, words: Numbers, starts: Numbers, hashes: Hashes, owners: Numbers, length: int
    ) -> Iterator[tuple[Numbers, Numbers]]:
        """Places of equal n-grams, in documents and in the texts, for a few documents at a time."""
        known, places = self._places[length]
        low, high = np.searchsorted(known, hashes, "left"), np.searchsorted(known, hashes, "right")
        hit = high > low
        starts, low, counts = starts[hit], low[hit], (high - low)[hit]
        for part in _parts(counts, owners[starts]):
            sizes = counts[part]
            firsts = np.repeat(starts[part], sizes)
            nth = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            found = places[np.repeat(low[part], sizes) + nth]
            same = np.ones(len(found), np.bool_)
            for offset in range(length):  # equal hashes may be of different words
                same &= words[firsts + offset] == self._words[found + offset]
            yield firsts[same], found[same]

    def _summed(self, documents: Numbers, places: Numbers, length: int) -> Overlaps:
        """Share of each text's words that its n-grams at these places cover, by document."""
        # n-grams that a document has several times count once
        keys = np.unique(documents * len(self._words) + places)
        documents, places = np.divmod(keys, max(len(self._words), 1))
        texts = self._owners[places]
        new = np.ones(len(keys), np.bool_)
        new[1:] = (np.diff(documents) != 0) | (np.diff(texts) != 0)
        firsts = np.flatnonzero(new)
        # an n-gram covers its words up to the next n-gram; the last of a text covers all of them
        covered = np.full(len(keys), length)
        covered[:-1] = np.where(new[1:], length, np.minimum(np.diff(places), length))
        sums = np.add.reduceat(covered, firsts) if len(firsts) else covered
        return Overlaps(documents[firsts], texts[firsts], sums / self.sizes[texts[firsts]])


def _window_hashes(words: Numbers, lengths: Any) -> Iterator[tuple[int, Hashes]]:
    """Hashes of the windows of each length, ascending, by their first word; the last few are of no window."""
    wanted, values = {*lengths}, words.astype(np.uint64)
    hashes = np.zeros(len(words), np.uint64)
    for length in range(1, max(wanted, default=0) + 1):
        hashes *= _FACTOR  # wraps around
        hashes[: max(len(words) - length + 1, 0)] += values[length - 1 :]
        if length in wanted:
            yield length, hashes


def _without_zeros(words: Numbers, length: int) -> Numbers:
    """First places of the windows that hold no 0."""
    if len(words) < length:
        return np.empty(0, np.int64)
    zeros = np.maximum.accumulate(np.where(words == 0, np.arange(len(words)), -1))  # the last one up to each place
    return np.flatnonzero(zeros[length - 1 :] < np.arange(len(words) - length + 1))


def _parts(counts: Numbers, owners: Numbers) -> Iterator[slice]:
    """Parts of about so many pairs, each of all n-grams of some documents."""
    firsts = np.flatnonzero(np.diff(owners, prepend=-1))  # the first n-gram of each document
    groups = (np.cumsum(counts) - counts)[firsts] // _MAX_PAIRS
    bounds = [*firsts[np.diff(groups, prepend=-1) != 0].tolist(), len(counts)]
    yield from (slice(first, last) for first, last in pairwise(bounds))
