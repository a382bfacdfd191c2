"""Shapes of the JSON files of a run: the values that a report needs from them, and the type of each."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lion_lightning.cache import read_json
from lion_lightning.printing import printable

LARGEST = 1e100
"""Largest number that can be drawn: sums and squares of larger ones overflow."""

FIX = "correct it, or remove it: the report goes without"


class Shape(Protocol):
    """Form that a value must have."""

    def read(self, value: Any, at: str) -> Any:
        """The part of a value that has a shape.

        Args:
            value: As JSON has it.
            at: Its place in the file, e.g. ``accuracy.estimate``; empty for the whole file.

        Raises:
            ValueError: It has another shape; the message says where, and what belongs there.
        """


class Leaf(NamedTuple):
    """A text, a number, or anything else that holds no further values.

    Attributes:
        noun: What it is, for messages.
        fits: True for a value that is one.
    """

    noun: str
    fits: Callable[[Any], bool]

    def read(self, value: Any, at: str) -> Any:
        """The value itself."""
        return value if self.fits(value) else _refuse(value, at, self.noun)


class ListOf(NamedTuple):
    """A list whose entries all have one shape."""

    shape: Shape

    def read(self, value: Any, at: str) -> list[Any]:
        """The list."""
        entries = value if isinstance(value, list) else _refuse(value, at, "a list")
        return [self.shape.read(one, f"{at}[{place}]") for place, one in enumerate(entries)]


class LastOf(NamedTuple):
    """The last entry of a list; those before it may be anything."""

    shape: Shape

    def read(self, value: Any, at: str) -> Any:
        """The entry."""
        entries = value if isinstance(value, list) and value else _refuse(value, at, "a list with an entry")
        return self.shape.read(entries[-1], f"{at}[{len(entries) - 1}]")


class DictOf(NamedTuple):
    """An object with any names, whose values all have one shape."""

    shape: Shape

    def read(self, value: Any, at: str) -> dict[str, Any]:
        """The entries whose value is known."""
        entries = value if isinstance(value, dict) else _refuse(value, at, "an object")
        return {name: self.shape.read(one, _inside(at, name)) for name, one in entries.items() if _is_known(one)}


class Record(NamedTuple):
    """An object with some names that are used; all others are left out.

    Attributes:
        shapes: Shape of the value of each name.
        needed: Names that must be there.
    """

    shapes: Mapping[str, Shape]
    needed: Collection[str] = ()

    def read(self, value: Any, at: str) -> dict[str, Any]:
        """The entries that are used and known."""
        entries = value if isinstance(value, dict) else _refuse(value, at, "an object")
        found = {}
        for name, shape in self.shapes.items():
            if _is_known(entries.get(name)):
                found[name] = shape.read(entries[name], _inside(at, name))
            elif name in self.needed:
                raise ValueError(f"{_inside(at, name)} is missing")
        return found


def read_shaped(path: Path, shape: Shape, fix: str = FIX) -> Any:
    """Read a JSON file that a run wrote; an empty object where there is none.

    Args:
        path: The file.
        shape: Shape of its content.
        fix: What the user can do about a damaged file, for the message.

    Raises:
        ValueError: It is not JSON, or has another shape.
    """
    if not path.exists():
        return {}
    return fitted(read_json(path, "what a run wrote", fix), shape, path, fix)


def fitted(content: Any, shape: Shape, where: Path | str, fix: str = FIX) -> Any:
    """The part of a file's content that has a shape.

    Args:
        content: As JSON or YAML has it.
        shape: Its shape.
        where: The file, or a line of it, for the message.
        fix: What the user can do, likewise.

    Raises:
        ValueError: It has another shape.
    """
    try:
        return shape.read(content, "")
    except ValueError as error:
        raise ValueError(f"{where}: {error}; {fix}") from error


def _is_known(value: Any) -> bool:
    """False for null, and for NaN and infinity, which a run that diverged writes."""
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _inside(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _refuse(value: Any, at: str, noun: str) -> Any:
    nouns = {dict: "an object", list: "a list" if value else "an empty list", str: "a text", type(None): "null"}
    found = nouns.get(type(value)) or printable(str(value)[:40])
    raise ValueError(f"{at or 'its content'} is {found}, not {noun}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_count(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and _is_number(value) and value >= least


ANY = Leaf("anything", lambda value: True)
TEXT = Leaf("a text", lambda value: isinstance(value, str))
FLAG = Leaf("true or false", lambda value: isinstance(value, bool))
NUMBER = Leaf(f"a number (at most {LARGEST:g})", _is_number)
COUNT = Leaf("a whole number of at least 0", _is_count)
SIZE = Leaf("a whole number of at least 1", lambda value: _is_count(value, 1))
LIMIT = Leaf("a whole number or 'unlimited'", lambda value: _is_count(value) or value == "unlimited")
PERCENT = Leaf(
    "a share such as '94.9%'",
    lambda value: isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?%", value) is not None,
)

_INTERVAL = {"estimate": NUMBER, "low": NUMBER, "high": NUMBER}
_ESTIMATE = Record(_INTERVAL, needed=_INTERVAL)

RUN = Record({"command": ListOf(TEXT), "stages": ListOf(TEXT)})
"""Of ``run.json``."""

DONE = Record({"seconds": NUMBER, "start": TEXT, "export": TEXT})
"""Of ``done.json``."""

STARTUP = Record(
    {
        "policy": Record({"class": TEXT, "parameters": COUNT}),
        "objective": Record({"loss": TEXT}),
        "data": Record(
            {
                "samples": COUNT,
                "units": TEXT,
                "rows": COUNT,
                "row_tokens": SIZE,
                "full": PERCENT,
                "sources": COUNT,
                "window": ANY,
            }
        ),
        "rows": DictOf(ListOf(TEXT)),
        "run": Record({"epochs": LIMIT, "steps": LIMIT, "devices": COUNT, "step_tokens": SIZE}),
        "memory": Record({"total": NUMBER}),
        "measured": Record({"memory": NUMBER}),
    }
)
"""Of ``startup.json``."""

PROVENANCE = LastOf(
    Record(
        {
            "started": TEXT,
            "command": ListOf(TEXT),
            "git": Record({"commit": TEXT, "changed": FLAG}),
            "packages": DictOf(TEXT),
            "precision": TEXT,
            "seed": COUNT,
            "model": Record({"module": TEXT}),
        }
    )
)
"""Of ``provenance.json``: the last start's entry."""

BEFORE_AFTER = Record(
    {
        "before": Record({"metrics": DictOf(NUMBER)}),
        "answers": ListOf(Record({"prompt": TEXT, "before": TEXT, "after": TEXT}, needed=("prompt", "after"))),
    }
)
"""Of ``before_after.json``."""

ROUND = Record({"metrics": DictOf(NUMBER), "report": Record({"kept": DictOf(COUNT)})})
"""Of the summary of a round."""

EVALUATE = Record({"by": TEXT})
"""Of ``evaluate.yaml``."""

RESULTS = Record(
    {
        "accuracy": Record(
            {**_INTERVAL, "unfinished": NUMBER, "by": DictOf(_ESTIMATE), "parts": DictOf(_ESTIMATE)}, needed=_INTERVAL
        ),
        "rewards": Record(
            {"accuracy": _ESTIMATE, "margin": _ESTIMATE, "pairs": COUNT, "prompts": COUNT},
            needed=("accuracy", "margin", "pairs", "prompts"),
        ),
    }
)
"""Of an evaluation's ``results.json``."""

ANSWER = Record(
    {"question": TEXT, "answer": TEXT, "score": NUMBER, "row": DictOf(ANY), "parts": DictOf(NUMBER)},
    needed=("question", "answer", "score"),
)
"""Of a row of an evaluation's ``scored.jsonl``."""
