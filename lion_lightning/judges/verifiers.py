"""Verifiers: small callables that say whether an answer is right."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

from lion_lightning.judges.verifier import right_answer
from lion_lightning.processes.limited import Apart
from lion_lightning.types import Prompt


class ExactMatch:
    """The answer is the text in a column of the prompt's row; white space around both does not count.

    Args:
        column: Name of the column.
        ignore_case: Whether capitals do not count either.
    """

    def __init__(self, column: str = "answer", ignore_case: bool = False) -> None:
        self.column, self.ignore_case = column, ignore_case

    def __call__(self, prompt: Prompt, answer: str) -> bool:
        """Whether the two are the same."""
        texts = [str(right_answer(prompt, self.column)).strip(), answer.strip()]
        wanted, given = (text.casefold() for text in texts) if self.ignore_case else texts
        return wanted == given


class MathAnswer:
    r"""The answer ends in the same value as a column of the prompt's row, as math-verify compares them.

    The value is what stands behind the last ``####`` (GSM8K), else what math-verify finds: what is ``\boxed``, or else
    the last expression. Equal forms count: 0.5 and 1/2, 1,000 and 1000.

    Args:
        column: Name of the column with the right answer, alone or at the end of a solution.
    """

    def __init__(self, column: str = "answer") -> None:
        self.column = column
        self._check = Apart("has_value")

    def __call__(self, prompt: Prompt, answer: str) -> bool:
        """Whether the values are the same.

        Raises:
            ModuleNotFoundError: math-verify is not installed.
            ValueError: The column holds no value.
        """
        if find_spec("math_verify") is None:
            raise ModuleNotFoundError("MathAnswer needs math-verify: pip install 'lion-lightning[judges]'")
        try:
            return self._check(_place(prompt), str(right_answer(prompt, self.column)), answer)
        except ValueError as error:
            raise ValueError(f"column {self.column!r}: {error}") from error


class Regex:
    """The answer matches a pattern somewhere.

    Args:
        pattern: A regular expression of Python; anchor it with ``^`` and ``$`` to match the whole.

    Raises:
        ValueError: The pattern is none.
    """

    def __init__(self, pattern: str) -> None:
        try:
            re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ValueError(f"Regex: {pattern!r} is no pattern ({error})") from error
        self.pattern = pattern
        self._check = Apart("matches")

    def __call__(self, prompt: Prompt, answer: str) -> bool:
        """Whether it matches."""
        return self._check(_place(prompt), self.pattern, answer)


class JSONSchema:
    """The answer is JSON that fits a schema; a code fence around it does not count. Nothing is fetched for ``$ref``.

    Args:
        schema: The schema; None to take it from the prompt's row.
        column: Name of the column that holds the schema, as a mapping or as JSON.

    Raises:
        ValueError: There is neither or both.
    """

    def __init__(self, schema: dict[str, Any] | None = None, column: str | None = None) -> None:
        if (schema is None) == (column is None):
            raise ValueError("JSONSchema: give either `schema` or `column`")
        self.schema, self.column = schema, column
        self._check = Apart("fits")

    def __call__(self, prompt: Prompt, answer: str) -> bool:
        """Whether it fits.

        Raises:
            ModuleNotFoundError: jsonschema is not installed.
            ValueError: The schema is none.
        """
        if find_spec("jsonschema") is None:
            raise ModuleNotFoundError("JSONSchema needs jsonschema: pip install 'lion-lightning[judges]'")
        schema = self.schema if self.column is None else right_answer(prompt, self.column)
        return self._check(_place(prompt), schema, answer)


def _place(prompt: Prompt) -> str:
    return prompt.where or repr(prompt.question[:40])


class Length:
    """The answer has a number of words within bounds.

    Args:
        least: Fewest words.
        most: Most words; None for no bound.

    Raises:
        ValueError: The bounds leave nothing.
    """

    def __init__(self, least: int = 1, most: int | None = None) -> None:
        if least < 0 or (most is not None and most < least):
            raise ValueError(f"Length: no answer has at least {least} and at most {most} words; mend the bounds")
        self.least, self.most = least, most

    def __call__(self, prompt: Prompt, answer: str) -> bool:
        """Whether it has."""
        return self.least <= len(answer.split()) <= (float("inf") if self.most is None else self.most)
