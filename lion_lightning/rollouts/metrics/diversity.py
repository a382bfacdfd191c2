"""Diversity of a prompt's answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean


def distinct(texts: Sequence[str], size: int = 2) -> float:
    """Share of different word n-grams among all of some texts; NaN if they have none."""
    grams: list[tuple[str, ...]] = []
    for text in texts:
        grams += _grams(text.split(), size)
    return len(set(grams)) / len(grams) if grams else math.nan


def self_bleu(texts: Sequence[str], longest: int = 4) -> float:
    """Mean BLEU of each text against the others; NaN for fewer than two texts, empty ones left out.

    Precisions of n-grams are counted with one more match and one more trial for n above 1 (Lin and Och, 2004), so that
    short texts have a value; a text has no n-grams longer than itself.
    """
    words = list(filter(None, map(str.split, texts)))
    if len(words) < 2:
        return math.nan
    return fmean(_bleu(words[i], words[:i] + words[i + 1 :], longest) for i in range(len(words)))


def _bleu(own: list[str], others: Sequence[list[str]], longest: int) -> float:
    logs = []  # of each precision
    for size in range(1, min(longest, len(own)) + 1):
        counts, most = Counter(_grams(own, size)), Counter[tuple[str, ...]]()
        for other in others:
            most |= Counter(_grams(other, size))
        matches = (counts & most).total()  # clipped, as in BLEU
        smooth = int(size > 1)
        if not matches + smooth:
            return 0.0
        logs.append(math.log((matches + smooth) / (counts.total() + smooth)))
    nearest = min((len(other) for other in others), key=lambda length: (abs(length - len(own)), length))
    brevity = min(0.0, 1 - nearest / len(own))
    return math.exp(fmean(logs) + brevity)


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
