"""What may not follow a token of the source: the dictionaries of dynamic blocking (arXiv 2010.12885, section 2.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

START = -1
"""What the first token of an answer follows."""

PRONOUNS = """
i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its itself we us our
ours ourselves they them their theirs themselves who whom whose which what one someone anyone everyone nobody something
anything everything nothing
"""
DETERMINERS = """
a an the this that these those some any no every either neither both all many much few several such each other another
"""
CONJUNCTIONS = """
and or but nor so yet if because although though while whereas unless until since when than whether as
"""
PREPOSITIONS = """
of in on at by to from with without for about above across after against along among around before behind below beneath
beside between beyond despite down during except inside into near off onto out outside over past through throughout
toward towards under up upon via within
"""
CLOSED_CLASS = tuple((PRONOUNS + DETERMINERS + CONJUNCTIONS + PREPOSITIONS).split())
"""English words that stay as they are (the paper's appendix D); which ones exactly was not found."""

Active = dict[int, frozenset[int]]
"""Tokens that may not follow a token."""


class Bigram(NamedTuple):
    """Two tokens of the source, one behind the other; the second begins a word."""

    token: int
    successor: int


@dataclass(frozen=True)
class BlockingDictionary:
    """All bigrams of a source that may be blocked.

    Attributes:
        entries: What may not follow a bigram's first token: its second, and that word in other cases. A token that the
            source has twice has an entry for each of its successors.
        p: Probability of an entry to be active in an answer.
    """

    entries: Mapping[Bigram, frozenset[int]]
    p: float

    def draw(self, seed: int) -> Active:
        """The active dictionary of one answer: each entry is kept with probability ``p``, on its own."""
        active: Active = {}
        chances = np.random.default_rng(seed).random(len(self.entries))
        for (bigram, blocked), chance in zip(self.entries.items(), chances, strict=True):
            if chance < self.p:
                active[bigram.token] = active.get(bigram.token, frozenset()) | blocked
        return active


@dataclass(frozen=True)
class Blocking:
    """Which bigrams of a source are blocked.

    Args:
        p: Probability of each to be blocked in an answer: with 0 none is, with 1 each is.
        keep: Words that are never blocked, in lower case; names that must stay can be added.
        variants: Block the successor with a capital, and in capitals, too.
    """

    p: float = 0.5
    keep: tuple[str, ...] = CLOSED_CLASS
    variants: bool = True

    def __post_init__(self) -> None:
        """Check the probability."""
        if not 0 <= self.p <= 1:
            raise ValueError(f"blocking.p is {self.p}; give a probability, from 0 to 1")

    def dictionary(self, text: str, tokenizer: PreTrainedTokenizerBase) -> BlockingDictionary:
        """Find the bigrams of a source, as the tokenizer of the model splits it.

        Raises:
            ValueError: The text has no words, or the tokenizer doesn't tell where they begin.
        """
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} does not tell words apart; blocking needs a fast tokenizer")
        entries: dict[Bigram, frozenset[int]] = {}
        words = list(_words(text, tokenizer))
        for word in words:
            kept = text[word.start : word.stop].lower() in self.keep
            if not kept and word.previous is not None and word.token not in tokenizer.all_special_ids:
                entries[Bigram(word.previous, word.token)] = self._forms(text, word, tokenizer)
        if not words:
            raise ValueError(f"the source {text!r} has no words, so there is nothing to block")
        spaced = [word.previous for word in words if text[word.start - 1 : word.start].isspace()]
        if spaced and set(spaced) == {None}:
            raise ValueError(
                f"{type(tokenizer).__name__} has no tokens of words: a space is a token of its own, and does not say "
                "which word comes next; use a tokenizer of words or subwords"
            )
        return BlockingDictionary(entries, self.p)

    def _forms(self, text: str, word: Word, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
        """First tokens of a word and, unless they are unknown, of its other cases, all in its place in the text."""
        plain, forms = text[word.start : word.stop], {word.token}
        for other in {plain[:1].upper() + plain[1:], plain.upper()} if self.variants else ():
            *_, found = _words(text[: word.start] + other, tokenizer)
            if found.previous is not None:
                forms.add(found.token)
        return frozenset(forms - {tokenizer.unk_token_id} | {word.token})


class Word(NamedTuple):
    """A word of a text.

    Attributes:
        start: Its first character.
        stop: Behind its last character.
        token: Its first token that shows anything; only this one may be blocked.
        previous: The token before; None for a lone space, which says nothing about the word that follows.
    """

    start: int
    stop: int
    token: int
    previous: int | None


def _words(text: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[Word]:
    """Words of a text: the tokenizer's, unless they go on within one of the text's, as ``'t`` and ``24`` in 2024 do."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    previous: int | None = START
    seen: set[int | None] = {None}
    for index, (token, word) in enumerate(zip(encoding["input_ids"], encoding.word_ids(), strict=True)):
        visible = bool(text[slice(*encoding["offset_mapping"][index])].strip())
        if visible and word not in seen:
            seen.add(word)
            start, stop = _trimmed(text, *encoding.word_to_chars(word))
            inside = start > 0 and text[start - 1].isalnum() and any(map(str.isalnum, text[start:stop]))
            if any(map(str.isspace, text[start:stop])):
                raise ValueError(f"{type(tokenizer).__name__} does not split a text into words, which blocking needs")
            if not inside:
                yield Word(start, stop, token, previous)
        previous = token if visible else None


def _trimmed(text: str, start: int, stop: int) -> tuple[int, int]:
    """A span without the spaces at its ends."""
    piece = text[start:stop]
    return start + len(piece) - len(piece.lstrip()), stop - len(piece) + len(piece.rstrip())
