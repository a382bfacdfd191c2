"""Ranks that were started with different settings are told so, instead of waiting for one another for ever."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch.distributed as dist

PLAIN = (str, int, float, bool, type(None))


def require_agreement(part: str, settings: Mapping[str, Any]) -> None:
    """Compare settings over all ranks; every rank must call this at the same point. Alone, it does nothing.

    Args:
        part: What the settings are of, e.g. ``model``: it begins their names in the message.
        settings: Any objects by name; of objects, what they are and their public plain attributes count.

    Raises:
        ValueError: On every rank, if they differ.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    own = dict(_flat(part, settings))
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, own)
    for rank, theirs in enumerate(ranks):
        differing = sorted(name for name in ranks[0].keys() | theirs.keys() if ranks[0].get(name) != theirs.get(name))
        if differing:
            first = differing[0]
            raise ValueError(
                f"rank {rank} was started with other settings than rank 0: {', '.join(differing[:5])} "
                f"({first} is {theirs.get(first)} there, {ranks[0].get(first)} on rank 0); start them with one config"
            )


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Names and texts of the plain values within a value."""
    if isinstance(value, PLAIN):
        yield name, repr(value)
        return
    for key, part in _parts(value):
        yield from _flat(f"{name}.{key}", part)


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, list | tuple | set | frozenset):
        return enumerate(sorted(value, key=repr) if isinstance(value, set | frozenset) else value)
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, partial):
        return [("class_path", value.func), *value.keywords.items()]
    public = getattr(value, "__dict__", {}) if not isinstance(value, type) and not callable(value) else {}
    kind = value if isinstance(value, type) or callable(value) else type(value)
    plain = [(key, item) for key, item in public.items() if key[0] != "_" and isinstance(item, PLAIN)]
    return [("class_path", getattr(kind, "__qualname__", type(kind).__qualname__)), *plain]
