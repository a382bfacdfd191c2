"""Check of configs for nulls: the parser takes them for missing values and passes None to the class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from importlib import import_module
from inspect import Parameter, isclass, signature
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from lion_lightning.models.settings import described


def refuse_nulls(settings: Mapping[str, Any], owner: Any, place: str = "") -> None:
    """Refuse nulls that a setting's type excludes, also in nested lists, dataclasses and classes.

    Settings whose default is None are skipped, and settings without a default, which the parser requires or links.

    Args:
        settings: Values by name, classes as ``class_path`` and ``init_args``.
        owner: The class or function with these parameters.
        place: Path of the settings, e.g. ``trainer``.

    Raises:
        ValueError: There is a null; the message has its key and the expected type.
    """
    for where, wanted in _nulls_of(settings, owner, place):
        raise ValueError(f"{where} is null; give {wanted}")


class _Setting(NamedTuple):
    """Type (Any if unknown) and default of a parameter."""

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
            yield (
                where,
                described(setting.hint) + (f", or remove it for the default {setting.default!r}" if without else ""),
            )
        yield from _nulls_in(value, setting.hint, where)


def _nulls_in(value: Any, hint: Any, place: str) -> Iterator[tuple[str, str]]:
    """Nulls in the value of a setting: arguments of a class or a dataclass, or of several in a list."""
    if isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _nulls_in(inner, hint, f"{place}[{number}]")
    elif isinstance(value, Mapping) and "class_path" in value:
        yield from _nulls_of(value.get("init_args") or {}, _named(str(value["class_path"])), place)
    elif isinstance(value, Mapping):
        kind = next((one for one in _dataclasses(hint) if value.keys() <= _settings_of(one).keys()), None)
        yield from _nulls_of(value, kind, place)  # the keys of other mappings are unknown


def _named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None  # reported by the parser


def _settings_of(owner: Any) -> dict[str, _Setting]:
    """Parameters of a function, or of a class and its base classes."""
    classes = owner.__mro__ if isclass(owner) else ()
    functions = [vars(one)["__init__"] for one in classes if "__init__" in vars(one)] or [owner]
    found: dict[str, _Setting] = {}
    for function in functions:
        try:
            hints, parameters = get_type_hints(function), signature(function).parameters
        except (NameError, TypeError, ValueError, AttributeError):  # types imported for type checking only
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
