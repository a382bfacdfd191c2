"""Check of configs for nulls: the parser takes them for missing values and passes None to the class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from importlib import import_module
from inspect import Parameter, isclass, signature
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

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
    known = _settings_of(owner)
    for name, value in settings.items():
        hint, default = known.get(name, (Any, None))
        where = f"{place}.{name}" if place else str(name)
        optional = default is not None and default is not Parameter.empty
        if value is None and optional and not _takes_null(hint):
            remedy = f", or remove it for the default {default!r}" if isinstance(default, str | int | float) else ""
            raise ValueError(f"{where} is null; give {described(hint)}{remedy}")
        _refuse_nulls_in(value, hint, where)


def _refuse_nulls_in(value: Any, hint: Any, place: str) -> None:
    """Refuse nulls within a value: in the arguments of a class or a dataclass, or of several in a list."""
    if isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _refuse_nulls_in(inner, hint, f"{place}[{number}]")
    elif isinstance(value, Mapping) and "class_path" in value:
        module, _, name = str(value["class_path"]).rpartition(".")
        try:
            made = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError):  # reported by the parser
            made = None
        refuse_nulls(value.get("init_args") or {}, made, place)
    elif isinstance(value, Mapping):
        kind = next((one for one in _dataclasses(hint) if value.keys() <= _settings_of(one).keys()), None)
        refuse_nulls(value, kind, place)  # without a dataclass the keys are unknown


def _settings_of(owner: Any) -> dict[str, tuple[Any, Any]]:
    """Type (Any if unknown) and default of each parameter of a function, or of a class and its base classes."""
    classes = owner.__mro__ if isclass(owner) else ()
    functions = [vars(one)["__init__"] for one in classes if "__init__" in vars(one)] or [owner]
    found: dict[str, tuple[Any, Any]] = {}
    for function in functions:
        try:
            hints, parameters = get_type_hints(function), signature(function).parameters
        except (NameError, TypeError, ValueError, AttributeError):  # types imported for type checking only
            continue
        own = {name: (hints.get(name, Any), each.default) for name, each in parameters.items()}
        found = own | found  # a class before its base classes
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
