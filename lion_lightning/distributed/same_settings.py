"""Settings compared over ranks: different ones would otherwise end in a hang."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from inspect import signature
from itertools import islice
from typing import Any

from torch import nn

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.printing import is_secret

PLAIN = (str, int, float, bool, type(None))


def check_same_on_all_ranks(ranks: Ranks, part: str, settings: Mapping[str, Any]) -> None:
    """Compare settings over all ranks; different ones would end in a hang.

    Args:
        ranks: All ranks must call this together; a single process compares nothing.
        part: Prefix of the names in the message, e.g. ``model``.
        settings: Any objects by name; see :func:`flat`.

    Raises:
        ValueError: On every rank, if they differ.
    """
    if ranks.size == 1:
        return
    gathered = ranks.all_gather({name: repr(value) for name, value in flat(part, settings)})
    first = gathered[0]
    for rank, other in enumerate(gathered):
        differing = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
        if differing:
            name = differing[0]
            raise ValueError(
                f"rank {rank} was started with other settings than rank 0: {', '.join(differing[:5])} "
                f"({name} is {other.get(name)} there, {first.get(name)} on rank 0); start them with one config"
            )


def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted names and plain values of a value, as in a config.

    Of an object: its class (``class_path``), constructor arguments that it keeps as attributes of the same name, and
    specs that it holds. Models are skipped, and names that look like secrets.
    """
    if isinstance(value, PLAIN):
        yield name, value
        return
    for key, part in _parts(value):  # the message prints values, so secrets are left out
        if not is_secret(key):
            yield from flat(f"{name}.{key}", part)


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, list | tuple | set | frozenset | nn.ModuleList):
        return enumerate(sorted(value, key=repr) if isinstance(value, set | frozenset) else value)
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, partial):  # jsonargparse's has the class for its first argument
        made = value.args[0] if value.args and isinstance(value.args[0], type) else value.func
        return [("class_path", _name(made)), *value.keywords.items()]
    if isinstance(value, type) or (callable(value) and not isinstance(value, nn.Module)):
        return [("class_path", _name(value))]
    return [("class_path", type(value).__qualname__), *_arguments(value).items()]


def _arguments(value: Any) -> dict[str, Any]:
    """Constructor arguments that an object keeps as attributes, and its specs."""
    found: dict[str, Any] = {}
    for name, part in getattr(value, "__dict__", {}).items():
        if is_dataclass(part) and not isinstance(part, type):
            found[name] = part
    for name in sorted(argument_names(type(value))):
        if hasattr(value, name):
            found[name] = getattr(value, name)
    for name, part in list(found.items()):
        # A network is skipped, but not a setting with a few parameters.
        is_model = isinstance(part, nn.Module) and len(list(islice(part.parameters(), 9))) > 8
        if name.startswith("_") or is_model:
            del found[name]
    return found


def argument_names(kind: type) -> set[str]:
    """Names of the arguments of a class's constructor and of its base classes'."""
    names: set[str] = set()
    for one in kind.__mro__:
        made = vars(one).get("__init__")
        if inspect.isfunction(made):
            names.update(signature(made).parameters)
    return names - {"self"}


def _name(value: Any) -> str:
    return getattr(value, "__qualname__", type(value).__qualname__)
