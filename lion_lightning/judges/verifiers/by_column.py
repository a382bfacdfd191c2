"""A verifier for data of several kinds: each row names the one that checks its answers."""

from __future__ import annotations

from typing import Any

from lion_lightning.judges.base import final_answer_of
from lion_lightning.judges.verifiers.columns import reference_answer
from lion_lightning.judges.verifiers.judge import Verifier, settings_of
from lion_lightning.types import Prompt


class ByColumn:
    """Checks each answer with the verifier that a column of the prompt's row names.

    Args:
        verifiers: A verifier for each value of the column.
        column: Name of the column; TÜLU 3's RLVR data names its parts in ``dataset``.

    Raises:
        ValueError: There are no verifiers.
    """

    def __init__(self, verifiers: dict[str, Verifier], column: str = "dataset") -> None:
        if not verifiers:
            raise ValueError("ByColumn: verifiers is empty; give one for each value of the column")
        self.verifiers, self.column = verifiers, column

    def identity(self) -> dict[str, Any]:
        """Settings that determine the result."""
        return {"column": self.column, "verifiers": {name: settings_of(one) for name, one in self.verifiers.items()}}

    def __call__(self, prompt: Prompt, answer: str) -> bool | float:
        """Return what the row's verifier does.

        Raises:
            ValueError: The row names none, or one that is not there.
        """
        return self._of(prompt)(prompt, answer)

    def final_answer(self, prompt: Prompt, answer: str) -> str:
        """Final answer of a text, by the row's verifier."""
        return final_answer_of(self._of(prompt), prompt, answer)

    def _of(self, prompt: Prompt) -> Verifier:
        name = reference_answer(prompt, self.column)
        if not isinstance(name, str) or name not in self.verifiers:
            known = ", ".join(self.verifiers)
            raise ValueError(f"column {self.column!r} is {name!r}; there are verifiers for {known}: add one for it")
        return self.verifiers[name]
