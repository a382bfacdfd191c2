"""BERT-iBLEU, which ranks paraphrases: alike in meaning, unlike in words (arXiv 2010.12885, section 2.4)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torchmetrics.functional.text import bleu_score


def self_bleu(source: str, candidate: str) -> float:
    """BLEU of a candidate against its source, from 0 to 1, without regard to case.

    Of n-grams up to 4, or up to the words of the shorter text: a copy of three words has no 4-gram, and still is one.
    """
    split = [re.findall(r"\w+|[^\w\s]", text.lower()) for text in (candidate, source)]
    longest = min(4, *map(len, split))
    texts = [" ".join(words) for words in split]
    return float(bleu_score([texts[0]], [[texts[1]]], n_gram=longest)) if longest else 0.0


def bert_ibleu(bert_score: float, self_bleu: float, beta: float = 4.0) -> float:
    """Weighted harmonic mean of BERTScore, with weight ``beta``, and of 1 - selfBLEU, with weight 1.

    Args:
        bert_score: BERTScore of source and candidate; the paper takes RoBERTa-base, weighted by IDF.
        self_bleu: BLEU of source and candidate, from 0 to 1.
        beta: Weight of the meaning.

    Returns:
        0 for a copy.
    """
    if not (0 <= self_bleu <= 1 and bert_score <= 1):
        raise ValueError(
            f"BERTScore {bert_score}, selfBLEU {self_bleu}: both must be at most 1; divide percents by 100"
        )
    if bert_score <= 0 or self_bleu == 1:
        return 0.0
    return (beta + 1) / (beta / bert_score + 1 / (1 - self_bleu))


def rank(source: str, candidates: Sequence[str], bert_scores: Sequence[float], beta: float = 4.0) -> list[str]:
    """Candidates by the metric, best first; of equal ones, the first stays first."""
    scored = []
    for candidate, bert_score in zip(candidates, bert_scores, strict=True):
        scored.append((bert_ibleu(bert_score, self_bleu(source, candidate), beta), candidate))
    return [candidate for _, candidate in sorted(scored, key=lambda pair: -pair[0])]
