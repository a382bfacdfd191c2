"""A null where a setting has to have a value: the parser takes it for "not given", and the class gets it as None."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from importlib import import_module
from inspect import Parameter, isclass, signature
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from lion_lightning.models.settings import described


def require_values(settings: Mapping[str, Any], owner: Any, place: str = "") -> None:
    """Refuse a null that the setting's type excludes, however deep in lists, specs and classes of a config it stands.

    Not so what the parser fills in: a default that is null, whatever the type says, and a setting without a default,
    which the parser asks for itself, or links to another.

    Args:
        settings: Values by name, classes as ``class_path`` and ``init_args``.
        owner: The class or function whose parameters they are.
        place: Of the settings, e.g. ``trainer``.

    Raises:
        ValueError: There is one; the message has its key, and what is wanted.
    """
    for where, wanted in _nulls_of(settings, owner, place):
        raise ValueError(f"{where} is null; give {wanted}")


class _Setting(NamedTuple):
    """A parameter: its type (Any where that is not known), and its default."""

    hint: Any = Any
    default: Any = None


def _nulls_of(settings: Mapping[str, Any], owner: Any, place: str) -> Iterator[tuple[str, str]]:
    known = _settings_of(owner)
    for name, value in settings.items():
        setting = known.get(name, _Setting())
        where = f"{place}.{name}" if place else str(name)
        by_default = setting.default is None or setting.default is Parameter.empty
        if value is None and not by_default and not _takes_null(setting.hint):
            without = isinstance(setting.default, str | int | float)
            yield where, described(setting.hint) + (f", or leave it out for {setting.default!r}" if without else "")
        yield from _nulls_in(value, setting.hint, where)


def _nulls_in(value: Any, hint: Any, place: str) -> Iterator[tuple[str, str]]:
    """Those in a value: in the settings of a class that it names, of a dataclass, or of several in a list."""
    if isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _nulls_in(inner, hint, f"{place}[{number}]")
    elif isinstance(value, Mapping) and "class_path" in value:
        yield from _nulls_of(value.get("init_args") or {}, _named(str(value["class_path"])), place)
    elif isinstance(value, Mapping):
        kind = next((one for one in _dataclasses(hint) if value.keys() <= _settings_of(one).keys()), None)
        yield from _nulls_of(value, kind, place)  # of other mappings nothing but what is in them is known


def _named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None  # the parser's business


def _settings_of(owner: Any) -> dict[str, _Setting]:
    """Parameters of a function, or of a class and those that it hands further ones on to."""
    classes = owner.__mro__ if isclass(owner) else ()
    functions = [vars(one)["__init__"] for one in classes if "__init__" in vars(one)] or [owner]
    found: dict[str, _Setting] = {}
    for function in functions:
        try:
            hints, parameters = get_type_hints(function), signature(function).parameters
        except (NameError, TypeError, ValueError, AttributeError):  # types that are there for checkers alone
            continue
        own = {name: _Setting(hints.get(name, Any), each.default) for name, each in parameters.items()}
        found = own | found
    return found


def _takes_null(hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(map(_takes_null, parts))
    if origin is Literal:
        return None in parts
    if origin is Annotated:
        return _takes_null(parts[0])
    return hint in (Any, None, NoneType, object) or isinstance(hint, TypeVar)


def _dataclasses(hint: Any) -> Iterator[type]:
    if isclass(hint) and is_dataclass(hint):
        yield hint
    for part in get_args(hint):
        yield from _dataclasses(part)
