"""Stand-ins for encoders: one token a letter, and capitals are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lion_lightning.data.formats import Completion, Example, Text, recognise
from lion_lightning.data.preferences import Preference
from lion_lightning.types import Piece, Sample


def piece(text: str, parent: int = -1) -> Piece:
    """A token a letter."""
    mask = np.array([letter.isupper() for letter in text], bool)
    return Piece(np.frombuffer(text.encode(), np.uint8).astype(np.int32), mask, parent)


def letters(sample: Sample) -> tuple[str, ...]:
    """The pieces of a sample as text again."""
    return tuple(bytes(part.input_ids.tolist()).decode() for part in sample.pieces)


class Letters:
    """Rows with a text."""

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Example]:
        return [recognise(row, columns)]

    def pieces(self, examples: Sequence[Text], where: Sequence[str]) -> list[tuple[Piece]]:
        return [(piece(example.text),) for example in examples]

    def fingerprint(self) -> str:
        return "letters"


class LetterPairs:
    """Rows with ``pairs``, each prompt, chosen and rejected, and the margin where it is known."""

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Preference]:
        pairs = (pair.split(" ") for pair in row["pairs"])
        return [
            Preference(Completion(prompt, chosen), Completion(prompt, rejected), *map(float, margin))
            for prompt, chosen, rejected, *margin in pairs
        ]

    def pieces(self, examples: Sequence[Preference], where: Sequence[str]) -> list[tuple[Piece, Piece, Piece]]:
        return [self._triple(*example[:2]) for example in examples]

    def fingerprint(self) -> str:
        return "pairs of letters"

    def _triple(self, chosen: Any, rejected: Any) -> tuple[Piece, Piece, Piece]:
        return piece(chosen.prompt), piece(chosen.completion, 0), piece(rejected.completion, 0)
