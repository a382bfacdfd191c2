"""Constraints on how often something occurs: words, sentences, keywords, letters, words in capitals."""

from __future__ import annotations

import re
from collections.abc import Sequence

RELATIONS = ("at least", "at most", "less than", "more than", "exactly", "around")
"""How a count may have to compare with a number; ``around`` is within 10%, and within 1."""

_CLOSERS, _OPENERS = "\"'”’»)]*_", "\"'“‘«([*_"  # noqa: RUF001
_NEVER_LAST = frozenset("mr mrs ms dr prof st vs cf fig approx gen gov hon rev e.g i.e".split())  # noqa: SIM905
_SELDOM_LAST = frozenset("etc al inc ltd co jr sr ph.d".split())  # noqa: SIM905


def compares(count: int, number: int, relation: str) -> bool:
    """Compare a count with a number.

    Raises:
        ValueError: The relation is none of :data:`RELATIONS`.
    """
    if relation == "around":
        return abs(count - number) <= max(round(number / 10), 1)
    signs = {"at least": count >= number, "at most": count <= number, "exactly": count == number}
    signs |= {"less than": count < number, "more than": count > number}
    if relation not in signs:
        raise ValueError(f"the relation is {relation!r}; it is one of {', '.join(RELATIONS)}")
    return signs[relation]


def words(text: str) -> list[str]:
    """Words: runs of non-space characters with a letter or a digit, so neither a bullet nor a dash."""
    return [word for word in text.split() if any(map(str.isalnum, word))]


def number_of_words(answer: str, number: int, relation: str) -> bool:
    """Compare the number of words."""
    return compares(len(words(answer)), number, relation)


def number_of_sentences(answer: str, number: int, relation: str) -> bool:
    """Compare the number of sentences, as :func:`count_sentences` finds them."""
    return compares(count_sentences(answer), number, relation)


def count_sentences(text: str) -> int:
    """Count sentences: they end at a mark before white space, or with their paragraph.

    No end are the points of common abbreviations and initials, of "1." at a sentence's beginning, and within words.
    """
    text = re.sub(r"([。！？])", r"\1 ", text)  # noqa: RUF001
    count = 0
    for paragraph in re.split(r"\n\s*\n", text):
        started, parts = False, paragraph.split()
        for word, following in zip(parts, [*parts[1:], ""], strict=False):
            if not started and re.fullmatch(r"\d{1,3}\.", word):  # the number of an item
                continue
            started = started or any(map(str.isalnum, word))
            if started and _ends_sentence(word, following):
                count, started = count + 1, False
        count += started
    return count


def _ends_sentence(word: str, following: str) -> bool:
    word = word.rstrip(_CLOSERS)
    if not word.endswith((".", "!", "?", "…", "。", "！", "？")):  # noqa: RUF001
        return False
    if not word.endswith(".") or word.endswith(".."):
        return True
    stem = word[:-1].lstrip(_OPENERS)
    initial = len(stem) == 1 and stem.isalpha() and stem != "I"
    if initial or stem.lower() in _NEVER_LAST:
        return False
    letters = "." in stem and all(len(part) == 1 and part.isalpha() for part in stem.split("."))  # U.S., a.m.
    return not (letters or stem.lower() in _SELDOM_LAST) or following.lstrip(_OPENERS)[:1].isupper()


def count_phrase(text: str, phrase: str, ignore_case: bool = True) -> int:
    """Count a phrase between word boundaries; any white space is as good as another."""
    # Words within words do not count, and a keyword that ends in a sign, such as C++, is found too.
    pattern = r"\s+".join(map(re.escape, phrase.split()))
    return len(re.findall(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE if ignore_case else 0))


def has_keywords(answer: str, keywords: Sequence[str]) -> bool:
    """Check that each keyword occurs, ignoring case."""
    return all(count_phrase(answer, keyword) for keyword in keywords)


def has_no_keywords(answer: str, keywords: Sequence[str]) -> bool:
    """Check that no keyword occurs, in any case."""
    return not any(count_phrase(answer, keyword) for keyword in keywords)


def keyword_frequency(answer: str, keyword: str, number: int, relation: str) -> bool:
    """Compare how often a keyword occurs, ignoring case."""
    return compares(count_phrase(answer, keyword), number, relation)


def letter_frequency(answer: str, letter: str, number: int, relation: str) -> bool:
    """Compare how often a letter, or another character, occurs, ignoring case.

    Raises:
        ValueError: It is more or less than one character.
    """
    if len(letter.strip()) != 1:
        raise ValueError(f"the letter is {letter!r}; it is one character")
    return compares(answer.lower().count(letter.strip().lower()), number, relation)


def capital_words(answer: str, number: int, relation: str) -> bool:
    """Compare the number of words in capitals; "I" is one, and a word with hyphens is one word."""
    return compares(sum(map(str.isupper, words(answer))), number, relation)
