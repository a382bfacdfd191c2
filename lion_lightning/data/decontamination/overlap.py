"""Overlap of texts with a few others, by n-grams of words that are hashed and then compared."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, pairwise, repeat
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lion_lightning.data.selection.spans import Choice
from lion_lightning.data.sources.readers import Numbers

Hashes = npt.NDArray[np.uint64]

_SEPARATORS = str.maketrans(dict.fromkeys(',.?!:;()"-\\', " "))
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MAX_PLACES = 4_000_000
"""Places of n-grams that are held at once, and those of one document more."""


def split_words(text: str) -> list[str]:
    r"""Split a text into lower-case words.

    Words end at white space and at any of ``, . ? ! : ; ( ) " - \``, as those of TÜLU 3's code, which are lost.

    >>> split_words('Is 2-1 "one"?')
    ['is', '2', '1', 'one']
    """
    return text.lower().translate(_SEPARATORS).split()


class Overlaps(NamedTuple):
    """Documents that have the same n-grams, and the benchmark texts that each of them overlaps with.

    Attributes:
        documents: Positions of the documents.
        texts: ``(texts,)`` positions of the benchmark texts.
        shares: ``(texts,)`` share of a text's words in n-grams that the documents have too; 1 for a short text that is
            in them.
    """

    documents: list[int]
    texts: Numbers
    shares: npt.NDArray[np.float64]


class _Ngrams(NamedTuple):
    """The different n-grams of one length.

    Attributes:
        hashes: ``(n-grams,)`` ascending; two n-grams may have the same.
        places: Where each n-gram stands, as first words among those of all texts, n-gram by n-gram.
        offsets: ``(n-grams + 1,)`` first place of each n-gram.
        shift: Bits of a hash that are not its bucket.
        buckets: Whether a bucket has a hash: most others are told by that, faster than by a search.
    """

    hashes: Hashes
    places: Numbers
    offsets: Numbers
    shift: np.uint64
    buckets: Choice

    @classmethod
    def of(cls, words: Numbers, length: int, places: Numbers, hashes: Hashes) -> _Ngrams:
        """The n-grams at these places, which have these hashes."""
        order = np.argsort(hashes, kind="stable")
        places, hashes = places[order], hashes[order]
        new = np.ones(len(places), np.bool_)
        new[1:] = (np.diff(hashes) != 0) | ~_are_equal(words, places[1:], words, places[:-1], length)
        bits = min(max(len(hashes).bit_length() + 4, 10), 27)
        shift, buckets = np.uint64(64 - bits), np.zeros(1 << bits, np.bool_)
        buckets[(hashes * _FACTOR) >> shift] = True
        return cls(hashes[new], places, np.append(np.flatnonzero(new), len(new)), shift, buckets)

    def find(self, hashes: Hashes) -> tuple[Numbers, Numbers]:
        """Positions of hashes that are there, and an n-gram of each, for every n-gram that has the hash."""
        near = np.flatnonzero(self.buckets[(hashes * _FACTOR) >> self.shift])
        low = np.searchsorted(self.hashes, hashes[near], "left")
        high = np.searchsorted(self.hashes, hashes[near], "right")
        return np.repeat(near, high - low), _ranges(low, high)

    def stand(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Positions of n-grams, and a place of each, for every place where it stands."""
        low, high = self.offsets[numbers], self.offsets[numbers + 1]
        return np.repeat(np.arange(len(numbers)), high - low), self.places[_ranges(low, high)]


class NgramIndex:
    """The n-grams of benchmark texts, to be found in documents.

    A text of ``ngram`` words or more overlaps with a document by the share of its words that are in an n-gram which the
    document has too. A shorter text has no n-gram and overlaps, wholly, with a document that contains all of it.

    Args:
        texts: Words of each benchmark text; at least one each.
        ngram: Words of an n-gram.
    """

    def __init__(self, texts: Sequence[Sequence[str]], ngram: int) -> None:
        self._numbers: dict[str, int] = {}  # of the benchmarks' words, from 1; 0 is any other word
        flat = [self._numbers.setdefault(word, len(self._numbers) + 1) for word in chain.from_iterable(texts)]
        self._words = np.array(flat, np.int64)
        self._sizes: Numbers = np.array([len(text) for text in texts], np.int64)
        self._owners = np.repeat(np.arange(len(texts)), self._sizes)  # text of each word
        self._ngrams: dict[int, _Ngrams] = {}  # by length: that of n-grams, and those of shorter texts
        left = np.cumsum(self._sizes)[self._owners] - np.arange(len(flat))  # words of its text from each word on
        lengths = np.minimum(self._sizes, ngram)
        for length, hashes in _window_hashes(self._words, set(lengths.tolist())):
            places = np.flatnonzero((lengths[self._owners] == length) & (left >= length))
            self._ngrams[length] = _Ngrams.of(self._words, length, places, hashes[places])

    def overlaps(self, documents: Sequence[Sequence[str]], above: float) -> list[Overlaps]:
        """Documents with the texts that they overlap with by more than a share.

        Args:
            documents: Words of each document.
            above: Overlaps up to this share are left out.
        """
        sizes = [len(document) + 1 for document in documents]
        flat = chain.from_iterable(chain(document, [""]) for document in documents)  # no n-gram goes past an end
        words = np.fromiter(map(self._numbers.get, flat, repeat(0)), np.int64, sum(sizes))
        origins = np.repeat(np.arange(len(sizes)), sizes)
        overlaps: list[Overlaps] = []
        for length, hashes in _window_hashes(words, self._ngrams.keys()):
            starts = _without_zeros(words, length)
            firsts, numbers = self._matched(words, starts, hashes[starts], length)
            overlaps += self._above(origins[firsts], numbers, length, above)
        return overlaps

    def _matched(self, words: Numbers, starts: Numbers, hashes: Hashes, length: int) -> tuple[Numbers, Numbers]:
        """First words of the n-grams in documents that texts have too, and the numbers of these."""
        ngrams = self._ngrams[length]
        positions, numbers = ngrams.find(hashes)
        firsts = starts[positions]
        # equal hashes may be of different words
        same = _are_equal(words, firsts, self._words, ngrams.places[ngrams.offsets[numbers]], length)
        return firsts[same], numbers[same]

    def _above(self, documents: Numbers, numbers: Numbers, length: int, above: float) -> Iterator[Overlaps]:
        """Overlaps above a share, of the n-grams in each document."""
        count = len(self._ngrams[length].hashes)
        keys = np.unique(documents * count + numbers)  # n-grams that a document has several times count once
        documents, numbers = np.divmod(keys, max(count, 1))
        firsts = np.flatnonzero(np.diff(documents, prepend=-1))
        # Many documents have the same n-grams, those of a common instruction: these are added up once.
        alike: dict[bytes, list[int]] = {}
        for first, last in pairwise([*firsts.tolist(), len(documents)]):
            alike.setdefault(numbers[first:last].tobytes(), []).append(int(documents[first]))
        for some in self._parts(alike, length):
            members, texts, shares = self._added_up(some, length)
            members, texts, shares = members[shares > above], texts[shares > above], shares[shares > above]
            bounds = np.searchsorted(members, np.arange(len(some) + 1)).tolist()
            for key, (first, last) in zip(some, pairwise(bounds), strict=True):
                if first < last:
                    yield Overlaps(alike[key], texts[first:last], shares[first:last])

    def _parts(self, keys: Iterable[bytes], length: int) -> Iterator[list[bytes]]:
        """Lists of n-grams with about so many places together."""
        sizes, part, total = np.diff(self._ngrams[length].offsets), [], 0
        for key in keys:
            part.append(key)
            total += int(sizes[np.frombuffer(key, np.int64)].sum())
            if total >= _MAX_PLACES:
                yield part
                part, total = [], 0
        if part:
            yield part

    def _added_up(self, groups: Sequence[bytes], length: int) -> tuple[Numbers, Numbers, npt.NDArray[np.float64]]:
        """Groups of n-grams, texts, and the share of the text's words that the n-grams cover."""
        numbers = np.frombuffer(b"".join(groups), np.int64)
        members = np.repeat(np.arange(len(groups)), [len(group) // numbers.itemsize for group in groups])
        positions, places = self._ngrams[length].stand(numbers)
        keys = np.sort(members[positions] * len(self._words) + places)
        members, places = np.divmod(keys, len(self._words))
        texts = self._owners[places]
        new = np.ones(len(keys), np.bool_)
        new[1:] = (np.diff(members) != 0) | (np.diff(texts) != 0)
        # an n-gram covers its words up to the next n-gram; the last one of a text covers all of them
        covered = np.full(len(keys), length)
        covered[:-1] = np.where(new[1:], length, np.minimum(np.diff(places), length))
        firsts = np.flatnonzero(new)
        sums = np.add.reduceat(covered, firsts)
        return members[firsts], texts[firsts], sums / self._sizes[texts[firsts]]


def _are_equal(words: Numbers, places: Numbers, others: Numbers, other_places: Numbers, length: int) -> Choice:
    """True for each place from which on so many words are the same as those of others."""
    same: Choice = np.ones(len(places), np.bool_)
    for offset in range(length):
        same &= words[places + offset] == others[other_places + offset]
    return same


def _ranges(low: Numbers, high: Numbers) -> Numbers:
    """``low`` up to ``high - 1`` of each, one after the other."""
    sizes = high - low
    ranges: Numbers = np.arange(sizes.sum()) + np.repeat(low - np.cumsum(sizes) + sizes, sizes)
    return ranges


def _window_hashes(words: Numbers, lengths: Collection[int]) -> Iterator[tuple[int, Hashes]]:
    """Hashes of the windows of each length, ascending, by their first word; the last few are of no window."""
    values = words.astype(np.uint64)
    hashes = np.zeros(len(words), np.uint64)
    for length in range(1, max(lengths, default=0) + 1):
        hashes *= _FACTOR  # wraps around
        hashes[: max(len(words) - length + 1, 0)] += values[length - 1 :]
        if length in lengths:
            yield length, hashes


def _without_zeros(words: Numbers, length: int) -> Numbers:
    """First places of the windows that hold no 0."""
    if len(words) < length:
        return np.empty(0, np.int64)
    zeros = np.maximum.accumulate(np.where(words == 0, np.arange(len(words)), -1))  # the last one up to each place
    return np.flatnonzero(zeros[length - 1 :] < np.arange(len(words) - length + 1))
