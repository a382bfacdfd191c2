"""A prompt with its answers, and how scored answers become pairs."""

from __future__ import annotations

import inspect
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import chain, combinations
from typing import Any, NamedTuple

from typing_extensions import override

from lion_lightning.data.formats.sft import Completion, Conversation

PromptAnswer = Conversation | Completion


class PromptAnswers(NamedTuple):
    """A prompt with one answer or more.

    Attributes:
        answers: The same prompt, in the same kind, with each answer; a conversation has ``prompt_turns`` set.
        values: Score or label of each answer, higher is better; NaN where it is not known.
        pairs: Positions of chosen and rejected among the answers, one tuple per pair.
    """

    answers: tuple[PromptAnswer, ...]
    values: tuple[float, ...]
    pairs: tuple[tuple[int, int], ...] = ()

    def in_pairs(self, pairs: Sequence[tuple[int, int]]) -> PromptAnswers:
        """The answers of these pairs alone, in the order in which the pairs name them.

        So a pair of two answers is the same example, whether a row holds nothing else or ranks ten answers.
        """
        places = places_of(pairs)
        return PromptAnswers(
            tuple(self.answers[answer] for answer in places),
            tuple(self.values[answer] for answer in places),
            tuple((places[chosen], places[rejected]) for chosen, rejected in pairs),
        )


def places_of(pairs: Iterable[Iterable[int]]) -> dict[int, int]:
    """Answers in the order in which pairs name them, each with its place in that order.

    >>> places_of([(3, 1), (3, 0)])
    {3: 0, 1: 1, 0: 2}
    """
    return {answer: place for place, answer in enumerate(dict.fromkeys(chain.from_iterable(pairs)))}


class Pairing(ABC):
    """How the scored answers of a prompt become pairs. Subclass it and name the subclass in YAML by ``class_path``.

    Equal scores make pairs too, of margin 0: what becomes of ties is decided, and counted, where pairs are filtered.
    """

    @abstractmethod
    def pairs(self, scores: Sequence[float], key: str) -> list[tuple[int, int]]:
        """Positions of chosen and rejected, one tuple per pair.

        Args:
            scores: Score of each answer, two or more; higher is better.
            key: Text that stands for the prompt and its answers, to seed a draw with.
        """

    def identity(self) -> dict[str, Any]:
        """Class, settings and source code, as plain data: a part of cache keys."""
        try:
            source = inspect.getsource(type(self))
        except (OSError, TypeError):  # typed into an interpreter
            source = ""
        return {"class": type(self).__qualname__, "settings": vars(self), "source": source}


class BestWorst(Pairing):
    """One pair: the highest score against the lowest.

    >>> BestWorst().pairs([3.0, 5.0, 1.0], key="")
    [(1, 2)]
    """

    @override
    def pairs(self, scores: Sequence[float], key: str) -> list[tuple[int, int]]:
        positions = range(len(scores))
        return [(max(positions, key=scores.__getitem__), min(reversed(positions), key=scores.__getitem__))]


class BestRandom(Pairing):
    """One pair: the highest score against an answer drawn from those with a lower one.

    Args:
        seed: Seed of the draw, which otherwise depends on the row's content alone, not on its place.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @override
    def pairs(self, scores: Sequence[float], key: str) -> list[tuple[int, int]]:
        best = max(range(len(scores)), key=scores.__getitem__)
        lower = [position for position, score in enumerate(scores) if score < scores[best]]
        others = lower or [position for position in range(len(scores)) if position != best]
        return [(best, random.Random(f"{self.seed} {key}").choice(others))]


class AllPairs(Pairing):
    """Every two answers, the better one first: ``n (n - 1) / 2`` pairs of ``n`` answers.

    >>> AllPairs().pairs([3.0, 5.0, 1.0], key="")
    [(1, 0), (0, 2), (1, 2)]
    """

    @override
    def pairs(self, scores: Sequence[float], key: str) -> list[tuple[int, int]]:
        return [(i, j) if scores[i] >= scores[j] else (j, i) for i, j in combinations(range(len(scores)), 2)]
