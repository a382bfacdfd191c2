"""Functions of the user that turn a raw row into rows of a known form."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from lion_lightning.data.sources.readers import Row
from lion_lightning.errors import first_line

Transform = Callable[[dict[str, Any]], Iterable[dict[str, Any]] | dict[str, Any]]


def imported(path: str, what: str = "transform") -> Any:
    """A function by its import path.

    Args:
        path: ``MODULE.FUNCTION``.
        what: The key that names it, for errors.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{what} {path!r} cannot be imported ({first_line(error)}); give MODULE.FUNCTION") from error
    if not callable(found):
        raise ValueError(f"{what} {path!r} is {type(found).__name__}, not a function; give MODULE.FUNCTION")
    return found


def name_of(transform: Any) -> str:
    """Name of a transform; of a partial its function's, of an object its class's."""
    made_of = getattr(transform, "func", transform)
    named = made_of if hasattr(made_of, "__qualname__") else type(made_of)
    return f"{named.__module__}.{named.__qualname__}"


def transformed(transform: Transform, row: Row) -> list[dict[str, Any]]:
    """The rows that a transform makes of one; an error of it is a ``ValueError`` with the row's place."""
    name = name_of(transform).rpartition(".")[2]
    try:
        made = transform(dict(row.values))
        rows = [made] if isinstance(made, dict) else list(made)
    except Exception as error:
        cause = first_line(error, with_type=True)
        raise ValueError(f"{row.where}: transform {name} failed ({cause}); return [] to skip a row") from error
    if not all(isinstance(made, dict) for made in rows):
        raise ValueError(f"{row.where}: transform {name} must return a dict or a list of dicts")
    return rows


def code_of(transform: Transform) -> list[str]:
    """Values that change when the function, or anything else in its file, does."""
    from datasets.fingerprint import Hasher

    module = inspect.getmodule(transform)
    try:
        text = inspect.getsource(module) if module else ""
    except (OSError, TypeError):  # typed into an interpreter: the hash of the code object has to do
        text = ""
    return [getattr(transform, "__module__", ""), Hasher.hash(transform), text]
