"""Verifiers: callables that check an answer, and the judge that scores with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from lion_lightning.processes.limited_process import LimitedCheck
from lion_lightning.readiness import require_package
from lion_lightning.types import Prompt

Verifier = Callable[[Prompt, str], bool | float]
"""From prompt and answer to whether the answer is correct, or to a score."""


class VerifierJudge:
    """Scores each answer with a verifier: ``reward`` for True, 0 for False; a number is the score itself.

    Args:
        verifier: A callable, in a config its import path, or one of the classes of this module (:class:`ExactMatch`,
            :class:`MathAnswer`, :class:`Regex`, :class:`JSONSchema`, :class:`Length`).
        reward: Score of a correct answer; 10 in RLVR (TÜLU 3, arXiv 2411.15124).
    """

    def __init__(self, verifier: Verifier, reward: float = 1.0) -> None:
        self.verifier, self.reward = verifier, reward
        self._name = getattr(verifier, "__qualname__", type(verifier).__qualname__)

    def identity(self) -> dict[str, Any]:
        """Settings that determine the scores."""
        own = getattr(self.verifier, "__dict__", {})
        settings = {key: value for key, value in own.items() if not key.startswith("_")}
        return {"judge": type(self).__name__, "verifier": self._name, "settings": settings, "reward": self.reward}

    def score(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """Score the answers to each prompt.

        Raises:
            ValueError: The verifier failed; the message names the prompt.
        """
        scores = []
        for prompt, given in zip(prompts, answers, strict=True):
            row: list[float] = []
            for answer in given:
                try:
                    found = self.verifier(prompt, answer)
                except Exception as error:
                    raise ValueError(f"{_place(prompt)}: {self._name} failed ({error})") from error
                row.append(self.reward * found if isinstance(found, bool) else found)
            scores.append(row)
        return scores

    def check_ready(self, prompts: Sequence[Prompt]) -> None:
        """Score a dummy answer, to find missing packages and columns."""
        self.score(prompts, [["?"]] * len(prompts))


def reference_answer(prompt: Prompt, column: str) -> Any:
    """The reference answer in a column of the prompt's row.

    Raises:
        ValueError: The row does not have this column.
    """
    if prompt.row.get(column) is None:
        known = ", ".join(prompt.row) or "none"
        raise ValueError(
            f"the row has no column {column!r} with the reference answer; its columns are {known}: set `column`"
        )
    return prompt.row[column]


class ExactMatch:
    """Compares the answer with a column of the prompt's row, without surrounding white space.

    Args:
        column: Name of the column.
        ignore_case: Ignore upper and lower case.
    """

    def __init__(self, column: str = "answer", ignore_case: bool = False) -> None:
        self.column, self.ignore_case = column, ignore_case

    def __call__(self, prompt: Prompt, answer: str) -> bool:
        """Return whether the texts are equal."""
        wanted, given = str(reference_answer(prompt, self.column)).strip(), answer.strip()
        if self.ignore_case:
            wanted, given = wanted.casefold(), given.casefold()
        return wanted == given


class MathAnswer:
    r"""Compares the final value of the answer with that of a column of the prompt's row, with math-verify.

    The final value comes after the last ``####`` (GSM8K); without one, math-verify takes the content of ``\boxed`` or
    the last expression. Different forms of a value are equal: 0.5 and 1/2, 1,000 and 1000.

    Args:
        column: Name of the column with the reference answer, by itself or at the end of a solution.
    """

    def __init__(self, column: str = "answer") -> None:
        self.column = column
        self._check = LimitedCheck("math_equal")

    def __call__(self, prompt: Prompt, answer: str) -> bool:
        """Return whether the values are equal.

        Raises:
            ModuleNotFoundError: math-verify is not installed.
            ValueError: The column has no value.
        """
        require_package("math_verify", "MathAnswer", "math-verify", "judges")
        try:
            return self._check(_place(prompt), str(reference_answer(prompt, self.column)), answer)
        except ValueError as error:
            raise ValueError(f"column {self.column!r}: {error}") from error


class Regex:
    """Searches the answer for a regular expression.

    Args:
        pattern: A Python regular expression; use ``^`` and ``$`` to match the full answer.

    Raises:
        ValueError: The pattern is invalid.
    """

    def __init__(self, pattern: str) -> None:
        try:
            re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ValueError(f"Regex: {pattern!r} is not a valid regular expression ({error})") from error
        self.pattern = pattern
        self._check = LimitedCheck("regex_found")

    def __call__(self, prompt: Prompt, answer: str) -> bool:
        """Return whether the pattern is found."""
        return self._check(_place(prompt), self.pattern, answer)


class JSONSchema:
    """Validates the answer, JSON with or without a code fence, against a JSON schema. ``$ref`` loads nothing.

    Args:
        schema: The schema; None to take it from the prompt's row.
        column: Name of the column with the schema, as a mapping or as JSON.

    Raises:
        ValueError: Neither or both arguments are given.
    """

    def __init__(self, schema: dict[str, Any] | None = None, column: str | None = None) -> None:
        if (schema is None) == (column is None):
            raise ValueError("JSONSchema: give either `schema` or `column`")
        self.schema, self.column = schema, column
        self._check = LimitedCheck("schema_valid")

    def __call__(self, prompt: Prompt, answer: str) -> bool:
        """Return whether the answer is valid.

        Raises:
            ModuleNotFoundError: jsonschema is not installed.
            ValueError: The schema is invalid.
        """
        require_package("jsonschema", "JSONSchema", "jsonschema", "judges")
        schema = self.schema if self.column is None else reference_answer(prompt, self.column)
        return self._check(_place(prompt), schema, answer)


def _place(prompt: Prompt) -> str:
    return prompt.where or repr(prompt.question[:40])


class Length:
    """Checks the number of words of the answer.

    Args:
        min_words: Minimum number of words.
        max_words: Maximum number of words; None for no limit.

    Raises:
        ValueError: The limits exclude every answer.
    """

    def __init__(self, min_words: int = 1, max_words: int | None = None) -> None:
        if min_words < 0 or (max_words is not None and max_words < min_words):
            raise ValueError(f"Length: min_words is {min_words} and max_words {max_words}; give 0 <= min <= max")
        self.min_words, self.max_words = min_words, max_words

    def __call__(self, prompt: Prompt, answer: str) -> bool:
        """Return whether the number of words is within the limits."""
        return self.min_words <= len(answer.split()) <= (float("inf") if self.max_words is None else self.max_words)
