"""Verifiers with a reference answer, a pattern, a schema or a length."""

from __future__ import annotations

import re
from typing import Any

from lion_lightning.judges.verifiers.columns import place_of, reference_answer
from lion_lightning.judges.verifiers.constraints.counting import words
from lion_lightning.processes.limited_process import LimitedCheck
from lion_lightning.readiness import require_package
from lion_lightning.types import Prompt


class ExactMatch:
    """Compares the answer with a column of the prompt's row, without surrounding white space.

    Args:
        column: Name of the column.
        ignore_case: Ignore upper and lower case.
        around: Texts that may stand before or behind what is compared, such as a full stop; each is taken off once.
    """

    def __init__(self, column: str = "answer", ignore_case: bool = False, around: list[str] | None = None) -> None:
        self.column, self.ignore_case, self.around = column, ignore_case, around or []

    def __call__(self, prompt: Prompt, answer: str) -> bool:
        """Return whether the texts are equal."""
        return self.final_answer(prompt, str(reference_answer(prompt, self.column))) == self.final_answer(
            prompt, answer
        )

    def final_answer(self, prompt: Prompt, answer: str) -> str:
        """The part of an answer that is compared."""
        text, around = answer.strip(), list(self.around)
        while found := next((one for one in around if text.startswith(one) or text.endswith(one)), None):
            around.remove(found)  # once each: the time stays linear in the answer
            text = text.removesuffix(found).removeprefix(found).strip()
        return text.casefold() if self.ignore_case else text


class MathAnswer:
    r"""Compares the final value of the answer with that of a column of the prompt's row, with math-verify.

    The final value comes after the last ``####`` (GSM8K); without one, math-verify takes the content of ``\boxed`` or
    the last expression. Different forms of a value are equal: 0.5 and 1/2, 1,000 and 1000.

    Args:
        column: Name of the column with the reference answer, by itself or at the end of a solution.
    """

    def __init__(self, column: str = "answer") -> None:
        self.column = column
        self._check, self._final = LimitedCheck("math_equal"), LimitedCheck("math_value")

    def __call__(self, prompt: Prompt, answer: str) -> bool:
        """Return whether the values are equal.

        Raises:
            ModuleNotFoundError: math-verify is not installed.
            ValueError: The column has no value.
        """
        require_package("math_verify", "MathAnswer", "math-verify", "judges")
        try:
            return self._check(place_of(prompt), str(reference_answer(prompt, self.column)), answer)
        except ValueError as error:
            raise ValueError(f"column {self.column!r}: {error}") from error

    def final_answer(self, prompt: Prompt, answer: str) -> str:
        """The final value, equal texts for equal values; the answer itself if it has none."""
        return self._final.value(place_of(prompt), answer) or answer.strip()


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
        return self._check(place_of(prompt), self.pattern, answer)


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
        return self._check(place_of(prompt), schema, answer)


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
        return self.min_words <= len(words(answer)) <= (float("inf") if self.max_words is None else self.max_words)
