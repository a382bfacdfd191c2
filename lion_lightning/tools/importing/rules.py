"""Rules for the keys of a config, of which the tables of the dialects are made."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any, Literal, NamedTuple

from typing_extensions import override

Kind = Literal["carried", "check", "no effect", "not supported", "unknown"]


class Outcome(NamedTuple):
    """The result of a rule for a key.

    Attributes:
        key: The key, with those that it stands in.
        kind: ``carried``; ``check``, carried but to be looked at; or why it was not.
        reason: For all but ``carried``.
    """

    key: str
    kind: Kind
    reason: str = ""


class Rule(ABC):
    """A rule: how the value of a key changes the recipe."""

    @abstractmethod
    def apply(self, key: str, value: Any, recipe: Any) -> Iterator[Outcome]:
        """Change the recipe, and say what was done.

        Args:
            key: For the outcome.
            value: Not None.
            recipe: To be changed: a recipe, or a part of one.

        Raises:
            ValueError: The value is not what the key takes; without the key's name.
        """


class To(Rule):
    """Sets a field of the recipe.

    Args:
        field: Its name, as ``batches.size``.
        read: Turns a value into that of the field, or raises a ``ValueError``.
        check: Why to look at it, if there is a reason.
    """

    def __init__(self, field: str, read: Callable[[Any], Any], check: str = "") -> None:
        self.field, self.read, self.check = field, read, check

    @override
    def apply(self, key: str, value: Any, recipe: Any) -> Iterator[Outcome]:
        _set(recipe, self.field, self.read(value))
        yield Outcome(key, "check" if self.check else "carried", self.check)


class Switch(Rule):
    """Sets fields of the recipe where a flag is on.

    Args:
        fields: Their values by name, as ``batches.packing``.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields

    @override
    def apply(self, key: str, value: Any, recipe: Any) -> Iterator[Outcome]:
        if flag(value):
            for field, wanted in self.fields.items():
                _set(recipe, field, wanted)
        yield Outcome(key, "carried")


def _set(recipe: Any, field: str, value: Any) -> None:
    owner, _, name = field.rpartition(".")
    setattr(attrgetter(owner)(recipe) if owner else recipe, name, value)


class Do(Rule):
    """Calls a function of the value and the recipe, which returns None, or the kind of outcome and its reason."""

    def __init__(self, function: Callable[[Any, Any], tuple[Kind, str] | None]) -> None:
        self.function = function

    @override
    def apply(self, key: str, value: Any, recipe: Any) -> Iterator[Outcome]:
        yield Outcome(key, *(self.function(value, recipe) or ("carried", "")))


class NoEffect(Rule):
    """A key that there is no use for here."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    @override
    def apply(self, key: str, value: Any, recipe: Any) -> Iterator[Outcome]:
        yield Outcome(key, "no effect", self.reason)


class NotSupported(Rule):
    """A key for something that there is not here; where it is off, nothing is lost.

    Args:
        reason: What to do instead.
        usual: Values that ask for what there is.
    """

    def __init__(self, reason: str, usual: tuple[Any, ...] = ()) -> None:
        self.reason, self.usual = reason, usual

    @override
    def apply(self, key: str, value: Any, recipe: Any) -> Iterator[Outcome]:
        if value in self.usual:
            yield Outcome(key, "carried")
        elif value in (False, 0, "", "none", "no") or value == [] or value == {}:
            yield Outcome(key, "no effect", "off there too")
        else:
            yield Outcome(key, "not supported", self.reason)


class Inside(Rule):
    """A mapping with a rule for each of its keys."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self.rules = rules

    @override
    def apply(self, key: str, value: Any, recipe: Any) -> Iterator[Outcome]:
        if not isinstance(value, Mapping):
            raise ValueError(f"a {type(value).__name__}, not a mapping")
        yield from apply_all(self.rules, value, recipe, f"{key}.")


def apply_all(rules: Mapping[str, Rule], values: Mapping[Any, Any], recipe: Any, where: str = "") -> list[Outcome]:
    """Apply the rule of each key to its value, in the order of the table; keys without a value say nothing.

    Raises:
        ValueError: A value is not what its key takes; the message begins with the key.
    """
    outcomes: list[Outcome] = []
    for name, rule in rules.items():
        if (value := values.get(name)) is None:
            continue
        try:
            outcomes += rule.apply(f"{where}{name}", value, recipe)
        except ValueError as error:
            within = str(error).startswith(f"{where}{name}.")  # the key that is wrong is named already
            raise ValueError(str(error) if within else f"{where}{name} is {error}") from error
    given = [name for name, value in values.items() if value is not None and name not in rules]
    return outcomes + [Outcome(f"{where}{name}", "unknown") for name in given]


# --- readers of values, which say what is wrong


def number(value: Any) -> float:
    """A finite number; YAML takes 5e-5 for a text."""
    try:
        found = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{_shown(value)}, not a number")
    return found


def integer(value: Any) -> int:
    """A whole number that fits eight bytes."""
    found = number(value)
    if not found.is_integer() or abs(found) >= 2**63:
        raise ValueError(f"{_shown(value)}, not a whole number")
    return int(found)


def at_least(least: float, read: Callable[[Any], Any] = number) -> Callable[[Any], Any]:
    """A reader of numbers from ``least`` on."""

    def read_number(value: Any) -> Any:
        found = read(value)
        if found < least:
            raise ValueError(f"{_shown(value)}; give at least {least}")
        return found

    return read_number


positive = at_least(1, integer)


def share(value: Any) -> float:
    """A number from 0 to 1."""
    found: float = at_least(0)(value)
    if found > 1:
        raise ValueError(f"{_shown(value)}; give at most 1")
    return found


def numbers(value: Any) -> list[float]:
    """A list of numbers."""
    if not isinstance(value, list):
        raise ValueError(f"{_shown(value)}, not a list of numbers")
    return [number(one) for one in value]


def flag(value: Any) -> bool:
    """True or false, also in words."""
    words = {"true": True, "yes": True, "on": True, "auto": True, "false": False, "no": False, "off": False, "": False}
    found = words.get(str(value).strip().lower())
    if found is None:
        raise ValueError(f"{_shown(value)}, not true or false")
    return found


def text(value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{_shown(value)}, not a text")
    return value


def texts(value: Any) -> list[str]:
    """A list of texts; also one text, with commas between them."""
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise ValueError(f"{_shown(value)}, not a list of texts")
    return [text(part) for part in parts]


def _shown(value: Any) -> str:
    try:
        return repr(value)[:60]
    except ValueError:  # an integer with more digits than Python writes
        return "a number with thousands of digits"
