"""Typed access to a parsed response; a missing or wrong value is an error with its path."""

from __future__ import annotations

import math
from typing import Any

from lion_lightning.printing import printable


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
        return Reply(self._as("an object", isinstance(self.value, dict)).get(name), self.server, inner)

    @property
    def absent(self) -> bool:
        """True if the value is null or missing."""
        return self.value is None

    def items(self, count: int | None = None) -> list[Reply]:
        """The items of a list; without a ``count``, at least one."""
        many = f"a list of {count}" if count is not None else "a list that is not empty"
        fits = isinstance(self.value, list) and (len(self.value) == count if count else len(self.value) > 0)
        found = self._as(many, fits)
        return [Reply(value, self.server, f"{self.path}[{number}]") for number, value in enumerate(found)]

    def text(self) -> str:
        """The value as a string without lone surrogates, which could not be written to a file."""
        fits = isinstance(self.value, str) and not any("\ud800" <= char <= "\udfff" for char in self.value)
        return str(self._as("a string", fits))

    def number(self) -> float:
        """The value as a finite number."""
        value = self.value
        try:
            fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        except OverflowError:  # an integer beyond the range of floats
            fits = False
        return float(self._as("a finite number", fits))

    def token_ids(self, vocabulary: int, most: int) -> tuple[int, ...]:
        """The value as token ids, at most ``most``, of a vocabulary of this size."""
        fits = isinstance(self.value, list) and len(self.value) <= most
        found = self._as(f"a list of at most {most} token ids", fits)
        for number, one in enumerate(found):
            if type(one) is not int or not 0 <= one < vocabulary:
                wrong = Reply(one, self.server, f"{self.path}[{number}]")
                wrong._as(f"a token id from 0 to {vocabulary - 1}", False)
        return tuple(found)

    def _as(self, what: str, fits: bool) -> Any:
        if not fits:
            raise ValueError(
                f"{self.server}: {self.path or 'the response'} is {_described(self.value)}, and must be {what}; "
                "use an OpenAI-compatible server"
            )
        return self.value


def _described(value: Any) -> str:
    """A short description of a value; of a list its length and first items."""
    if value is None:
        return "null or missing"
    if isinstance(value, dict):
        return f"an object with {', '.join(map(repr, list(value)[:4])) or 'nothing in it'}"
    if isinstance(value, list):
        return f"a list of {len(value)} ({printable(repr(value[:3]))[:60]})"
    return printable(repr(value))[:60]
