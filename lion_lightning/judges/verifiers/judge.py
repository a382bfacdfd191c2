"""The judge that scores with a verifier: a callable that checks an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lion_lightning.errors import first_line
from lion_lightning.judges.base import final_answer_of
from lion_lightning.judges.verifiers.columns import place_of
from lion_lightning.types import Prompt

Verifier = Callable[[Prompt, str], bool | float]
"""From prompt and answer to whether the answer is correct, or to a score."""


class VerifierJudge:
    """Scores each answer with a verifier: ``reward`` for True, 0 for False; a number is the score itself.

    An answer that scores ``reward`` or more is right: that is what pass rates count.

    Args:
        verifier: A callable, in a config its import path, or one of the classes of
            :mod:`lion_lightning.judges.verifiers`.
        reward: Score of a correct answer; 10 in RLVR (TÜLU 3, arXiv 2411.15124).
    """

    def __init__(self, verifier: Verifier, reward: float = 1.0) -> None:
        self.verifier, self.reward = verifier, reward

    @property
    def right_from(self) -> float | None:
        """Score from which on an answer is right; None where ``reward`` punishes, or is 0."""
        return self.reward if self.reward > 0 else None

    def identity(self) -> dict[str, Any]:
        """Settings that determine the scores."""
        return {"judge": type(self).__name__, "reward": self.reward, **settings_of(self.verifier)}

    def score(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """Score the answers to each prompt.

        Raises:
            ValueError: The verifier failed; the message names the prompt.
        """
        scores = []
        for prompt, given in zip(prompts, answers, strict=True):
            row: list[float] = []
            for answer in given:
                found = self._call(self.verifier, prompt, answer)
                row.append(self.reward * found if isinstance(found, bool) else found)
            scores.append(row)
        return scores

    def final_answer(self, prompt: Prompt, answer: str) -> str:
        """Final answer of a text, for a majority to be counted: the verifier's ``final_answer``, or all of its text.

        Raises:
            ValueError: The verifier failed; the message names the prompt.
        """
        return str(self._call(partial(final_answer_of, self.verifier), prompt, answer))

    def _call(self, function: Callable[[Prompt, str], Any], prompt: Prompt, answer: str) -> Any:
        try:
            return function(prompt, answer)
        except Exception as error:
            cause = str(error) if isinstance(error, ValueError) else first_line(error)  # a KeyError is not just 'city'
            raise ValueError(f"{place_of(prompt)}: {name_of(self.verifier)} failed ({cause})") from error

    def check_ready(self, prompts: Sequence[Prompt]) -> None:
        """Score a dummy answer, to find missing packages and columns."""
        self.score(prompts, [["?"]] * len(prompts))


def settings_of(verifier: Verifier) -> dict[str, Any]:
    """Name and settings of a verifier: its ``identity()`` if it has one, else its public attributes."""
    if hasattr(verifier, "identity"):
        settings = verifier.identity()
    else:
        own = getattr(verifier, "__dict__", {})
        settings = {key: value for key, value in own.items() if not key.startswith("_")}
    return {"verifier": name_of(verifier), "settings": settings}


def name_of(verifier: Verifier) -> str:
    """Name of a function or class."""
    return str(getattr(verifier, "__qualname__", type(verifier).__qualname__))
