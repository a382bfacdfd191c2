"""The row formats that preference data comes in, and how a raw row becomes pairs of answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from lion_lightning.data.formats import Completion, Conversation

Whole = Conversation | Completion


class Preference(NamedTuple):
    """A preferred answer and another to the same prompt.

    Attributes:
        chosen: Prompt and preferred answer; a conversation has ``prompt_turns`` set.
        rejected: The same prompt, in the same kind, with the other answer.
        margin: Score of chosen minus score of rejected, where the row has scores; 0 is a tie.
    """

    chosen: Whole
    rejected: Whole
    margin: float | None = None


class Pairing(ABC):
    """How the scored answers of a prompt become pairs. Subclass it and name the subclass in YAML by ``class_path``."""

    @abstractmethod
    def pairs(self, scores: Sequence[float], key: str) -> list[tuple[int, int]]:
        """Positions of chosen and rejected, a tuple a pair.

        Args:
            scores: Score of each answer, two or more; higher is better.
            key: Hash of the prompt and its answers, to draw from where something is to be drawn.
        """

    def identity(self) -> list[Any]:
        """What decides the pairs, as plain data: a part of cache keys."""
        return [type(self).__qualname__, vars(self)]


class BestWorst(Pairing):
    """One pair: the highest score against the lowest."""

    def pairs(self, scores: Sequence[float], key: str) -> list[tuple[int, int]]:
        """See :meth:`Pairing.pairs`."""
        places = range(len(scores))
        return [(max(places, key=scores.__getitem__), min(reversed(places), key=scores.__getitem__))]


class BestRandom(Pairing):
    """One pair: the highest score against an answer drawn from the lower ones."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def pairs(self, scores: Sequence[float], key: str) -> list[tuple[int, int]]:
        """See :meth:`Pairing.pairs`."""
        raise NotImplementedError


class AllPairs(Pairing):
    """Every two answers, the better one first."""

    def pairs(self, scores: Sequence[float], key: str) -> list[tuple[int, int]]:
        """See :meth:`Pairing.pairs`."""
        return [(i, j) if scores[i] >= scores[j] else (j, i) for i, j in combinations(range(len(scores)), 2)]


def recognise_preferences(
    row: Mapping[str, Any], columns: Mapping[str, str] | None, pairing: Pairing
) -> list[Preference]:
    """Turn a raw row into preference pairs."""
    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    return [Preference(Completion(prompt, chosen), Completion(prompt, rejected))]
