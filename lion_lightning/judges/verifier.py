"""Scores by rules that can be checked: right or wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lion_lightning.types import Prompt

Verifier = Callable[[Prompt, str], bool | float]
"""Whether an answer to a prompt is right, or a score of it."""


class VerifierJudge:
    """Asks a verifier about each answer: True scores ``reward``, False 0, and a number is the score itself.

    Args:
        verifier: A callable, by import path in a config, or one of the objects beside this class
            (:class:`ExactMatch`, :class:`MathAnswer`, :class:`Regex`, :class:`JSONSchema`, :class:`Length`).
        reward: Score of a right answer; RLVR (TÜLU 3, arXiv 2411.15124) has 10.
    """

    def __init__(self, verifier: Verifier, reward: float = 1.0) -> None:
        self.verifier, self.reward = verifier, reward

    def identity(self) -> dict[str, Any]:
        """What decides the scores."""
        own = self.verifier
        name = getattr(own, "__qualname__", type(own).__qualname__)
        settings = {key: value for key, value in getattr(own, "__dict__", {}).items() if not key.startswith("_")}
        return {"judge": type(self).__name__, "verifier": name, "settings": settings, "reward": self.reward}

    def score(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """See :class:`~lion_lightning.judges.base.Judge`.

        Raises:
            ValueError: The verifier fails; the message names the prompt.
        """
        return [
            [self._score(prompt, answer) for answer in given] for prompt, given in zip(prompts, answers, strict=True)
        ]

    def check_ready(self, prompts: Sequence[Prompt]) -> None:
        """See :class:`~lion_lightning.readiness.ChecksReady`: any score shows what is missing."""
        self.score(prompts, [["?"]] * len(prompts))

    def _score(self, prompt: Prompt, answer: str) -> float:
        try:
            said = self.verifier(prompt, answer)
        except Exception as error:
            name = getattr(self.verifier, "__qualname__", type(self.verifier).__qualname__)
            place = prompt.where or repr(prompt.question[:40])
            raise ValueError(f"{place}: {name} failed ({error})") from error
        return self.reward * said if isinstance(said, bool) else said


def right_answer(prompt: Prompt, column: str) -> Any:
    """What the prompt's row has in a column.

    Args:
        prompt: What was asked.
        column: Name of the column.

    Raises:
        ValueError: The row has no such column.
    """
    if prompt.row.get(column) is None:
        known = ", ".join(prompt.row) or "none"
        raise ValueError(
            f"the row has no column {column!r} with the right answer; its columns are {known}: set `column`"
        )
    return prompt.row[column]
