"""Reading what a server said, which may be anything: a value that is not as it must be is one line that names it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lion_lightning.printing import printable


class ReplyError(ValueError):
    """A server's reply cannot be used."""


class Reply:
    """A part of a parsed reply.

    Args:
        value: What is there.
        server: Who said it: address and route.
        place: Where it stands in the reply, e.g. ``choices[0].text``; empty for the whole.
    """

    def __init__(self, value: Any, server: str, place: str = "") -> None:
        self.value, self.server, self.place = value, server, place

    def __getitem__(self, name: str) -> Reply:
        """What an object has under a name; null where it has nothing there."""
        inner = f"{self.place}.{name}" if self.place else name
        return Reply(self._as("an object", lambda found: isinstance(found, dict)).get(name), self.server, inner)

    @property
    def absent(self) -> bool:
        """Whether it is null, or was left out."""
        return self.value is None

    def items(self, count: int | None = None) -> list[Reply]:
        """The parts of a list.

        Args:
            count: How many there must be; None for at least one.
        """
        many = f"a list of {count}" if count is not None else "a list that is not empty"
        found = self._as(many, lambda value: isinstance(value, list) and (len(value) == count if count else value))
        return [Reply(value, self.server, f"{self.place}[{number}]") for number, value in enumerate(found)]

    def text(self) -> str:
        """A text that can be written to a file: without halves of characters."""
        return str(self._as("a text", _is_text))

    def number(self) -> float:
        """A finite number."""
        return float(self._as("a finite number", _is_finite))

    def token_ids(self, vocabulary: int, most: int) -> tuple[int, ...]:
        """Ids of tokens.

        Args:
            vocabulary: They are below this.
            most: So many there may be.
        """
        found = self._as(f"a list of at most {most} token ids", lambda ids: isinstance(ids, list) and len(ids) <= most)
        for number, one in enumerate(found):
            if type(one) is not int or not 0 <= one < vocabulary:
                wrong = Reply(one, self.server, f"{self.place}[{number}]")
                wrong._as(f"a token id from 0 to {vocabulary - 1}", lambda _: False)
        return tuple(found)

    def _as(self, what: str, fits: Callable[[Any], Any]) -> Any:
        if not fits(self.value):
            raise ReplyError(
                f"{self.server}: {self.place or 'the reply'} is {_described(self.value)}, and must be {what}; "
                "use a server that speaks OpenAI's protocol"
            )
        return self.value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _described(value: Any) -> str:
    """What is there, shortened; a list by its length and what in it may be odd."""
    if value is None:
        return "null or missing"
    if isinstance(value, dict):
        return f"an object with {', '.join(map(repr, list(value)[:4])) or 'nothing in it'}"
    if isinstance(value, list):
        return f"a list of {len(value)} ({printable(repr(value[:3]))[:60]})"
    return printable(repr(value))[:60]
