"""Sentences to restore: what the paper adapts a model to paraphrasing with (arXiv 2010.12885, section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True)
class Corruption:
    """A source's ``transform``: a row with a sentence becomes one that asks to restore it from some of its words.

    A share of the words is deleted, and the others are shuffled; no token marks where one was. Equal sentences are
    corrupted alike.

    Args:
        column: Column of the sentence. A row with less than two words in it is skipped.
        delete: Share of the words that are deleted; which one the paper took was not found.
        seed: Of the choice, along with the sentence.
    """

    column: str = "text"
    delete: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 <= self.delete < 1:
            raise ValueError(f"delete is {self.delete}; give a share of the words from 0 to below 1")

    def __call__(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """A question and its answer."""
        words = str(row[self.column]).split()
        if len(words) < 2:
            return []
        kept = max(1, len(words) - round(self.delete * len(words)))
        chosen = Random(f"{self.seed} {row[self.column]}").sample(words, kept)  # in any order
        return [{"question": " ".join(chosen), "answer": row[self.column]}]


restore = Corruption()
"""For a config: ``transform: examples.nonfree.dynamic_blocking.corruption.restore``."""
