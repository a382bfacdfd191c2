"""Typed access to a parsed response; a missing or wrong value is an error with its path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lion_lightning.printing import printable


class ReplyError(ValueError):
    """A server's response has another format."""


class Reply:
    """A value of a parsed response.

    Args:
        value: The value.
        server: Address and route of the response.
        path: Path of the value in the response, e.g. ``choices[0].text``; empty for the response itself.
    """

    def __init__(self, value: Any, server: str, path: str = "") -> None:
        self.value, self.server, self.path = value, server, path

    def __getitem__(self, name: str) -> Reply:
        """The value of a key of an object; null if it is missing."""
        inner = f"{self.path}.{name}" if self.path else name
        return Reply(self._as("an object", lambda found: isinstance(found, dict)).get(name), self.server, inner)

    @property
    def absent(self) -> bool:
        """True if the value is null or missing."""
        return self.value is None

    def items(self, count: int | None = None) -> list[Reply]:
        """The items of a list.

        Args:
            count: Required number of items; None for at least one.
        """
        many = f"a list of {count}" if count is not None else "a list that is not empty"
        found = self._as(many, lambda value: isinstance(value, list) and (len(value) == count if count else value))
        return [Reply(value, self.server, f"{self.path}[{number}]") for number, value in enumerate(found)]

    def text(self) -> str:
        """The value as a string without lone surrogates, which could not be written to a file."""
        return str(self._as("a string", _is_text))

    def number(self) -> float:
        """The value as a finite number."""
        return float(self._as("a finite number", _is_finite))

    def token_ids(self, vocabulary: int, most: int) -> tuple[int, ...]:
        """The value as token ids.

        Args:
            vocabulary: Size of the vocabulary.
            most: Maximum number of ids.
        """
        found = self._as(f"a list of at most {most} token ids", lambda ids: isinstance(ids, list) and len(ids) <= most)
        for number, one in enumerate(found):
            if type(one) is not int or not 0 <= one < vocabulary:
                wrong = Reply(one, self.server, f"{self.path}[{number}]")
                wrong._as(f"a token id from 0 to {vocabulary - 1}", lambda _: False)
        return tuple(found)

    def _as(self, what: str, fits: Callable[[Any], Any]) -> Any:
        if not fits(self.value):
            raise ReplyError(
                f"{self.server}: {self.path or 'the response'} is {_described(self.value)}, and must be {what}; "
                "use an OpenAI-compatible server"
            )
        return self.value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a very large integer
        return False


def _described(value: Any) -> str:
    """A short description of a value; of a list its length and first items."""
    if value is None:
        return "null or missing"
    if isinstance(value, dict):
        return f"an object with {', '.join(map(repr, list(value)[:4])) or 'nothing in it'}"
    if isinstance(value, list):
        return f"a list of {len(value)} ({printable(repr(value[:3]))[:60]})"
    return printable(repr(value))[:60]
