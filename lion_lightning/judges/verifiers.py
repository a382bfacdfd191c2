"""Scores by rules that can be checked, and the rules: small callables that say whether an answer is right."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from lion_lightning.processes.limited_process import LimitedCheck
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


def reference_answer(prompt: Prompt, column: str) -> Any:
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
        texts = [str(reference_answer(prompt, self.column)).strip(), answer.strip()]
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
        self._check = LimitedCheck("has_value")

    def __call__(self, prompt: Prompt, answer: str) -> bool:
        """Whether the values are the same.

        Raises:
            ModuleNotFoundError: math-verify is not installed.
            ValueError: The column holds no value.
        """
        if find_spec("math_verify") is None:
            raise ModuleNotFoundError("MathAnswer needs math-verify: pip install 'lion-lightning[judges]'")
        try:
            return self._check(_place(prompt), str(reference_answer(prompt, self.column)), answer)
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
        self._check = LimitedCheck("matches")

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
        self._check = LimitedCheck("fits")

    def __call__(self, prompt: Prompt, answer: str) -> bool:
        """Whether it fits.

        Raises:
            ModuleNotFoundError: jsonschema is not installed.
            ValueError: The schema is none.
        """
        if find_spec("jsonschema") is None:
            raise ModuleNotFoundError("JSONSchema needs jsonschema: pip install 'lion-lightning[judges]'")
        schema = self.schema if self.column is None else reference_answer(prompt, self.column)
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
