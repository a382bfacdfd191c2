"""Lists of a later config file, or of the command line, in place of earlier ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import _typehints


@contextmanager
def lists_replaced() -> Iterator[None]:
    """Have the parser replace a list by a later one within the block.

    jsonargparse (4.53) merges a list with an earlier one of the same length entry by entry: what the later entries do
    not name (``fraction`` or ``columns`` of a source) would stay as it was for entries that they have nothing to do
    with. What is added to a list (``callbacks+``) is added as before.
    """
    adapt: Any = _typehints.adapt_typehints

    def without_earlier_list(val: Any, typehint: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(val, list) and not kwargs.get("append"):
            kwargs["prev_val"] = None
        return adapt(val, typehint, *args, **kwargs)

    _typehints.adapt_typehints = without_earlier_list  # the parser calls itself by this name, also for inner values
    try:
        yield
    finally:
        _typehints.adapt_typehints = adapt
