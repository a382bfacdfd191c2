"""Specs from plain data, as checkpoints and configs hold them, with each key and value checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def spec_from(kind: type[T], settings: object, where: str) -> T:
    """A spec from plain data.

    Args:
        kind: A dataclass.
        settings: A mapping of its fields; a spec of that kind is returned as it is.
        where: Name of the settings in messages, e.g. ``policy``.

    Raises:
        ValueError: A key is unknown or missing, or a value is not of its field's type.
    """
    if isinstance(settings, kind):
        return settings
    if not isinstance(settings, Mapping):
        raise ValueError(f"{where}: {_shown(settings)} is not a mapping of settings")
    known = {field.name: field.default is MISSING and field.default_factory is MISSING for field in fields(kind)}  # type: ignore[arg-type]
    for key in settings:
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise ValueError(f"{where}: there is no setting {_shown(key)}; {hint}")
    if lacking := [name for name, needed in known.items() if needed and name not in settings]:
        raise ValueError(f"{where}: {lacking[0]!r} is missing; give it")
    check_types(kind, settings, where)
    return kind(**settings)


def asked_spec(kind: type[T], settings: object, where: str) -> T:
    """A spec given by a user; a mapping, which may come from a checkpoint, cannot make code run.

    Args:
        kind: A dataclass with a field ``trust_remote_code``.
        settings: A mapping of its fields, or a spec.
        where: Name of the settings in messages.

    Raises:
        ValueError: As :func:`spec_from`; or a mapping sets ``trust_remote_code``.
    """
    spec = spec_from(kind, settings, where)
    if spec is not settings and getattr(spec, "trust_remote_code", False):
        raise ValueError(
            f"{where}: a mapping, which may come from a checkpoint, cannot set `trust_remote_code`; give "
            f"{kind.__name__}(..., trust_remote_code=True)"
        )
    return spec


def check_types(kind: type, settings: Mapping[str, Any], where: str) -> None:
    """Check values against the types of a dataclass's fields; a nested dataclass may be a mapping.

    Args:
        kind: The dataclass.
        settings: Values by field.
        where: Name of the settings in messages.

    Raises:
        ValueError: A value has another type; the message names the expected one.
    """
    hints = get_type_hints(kind)
    for name, value in settings.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{where}.{name}: {_shown(value)} cannot be used; give {described(hints[name])}")


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin in (list, tuple):  # JSON and YAML have no tuples
        return isinstance(value, list | tuple) and all(_fits(one, parts[0]) for one in value)
    if origin is dict:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if is_dataclass(hint):
        return isinstance(value, Mapping | hint)  # a mapping is checked when the nested spec is made
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)


def described(hint: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(described, parts))
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin in (list, tuple):
        return f"a list of {described(parts[0])}"
    if origin is dict or is_dataclass(hint):
        return "a mapping"
    named = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
    if hint in named:
        return named[hint]
    return "anything" if hint is Any else f"a {getattr(hint, '__name__', str(hint))}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
