"""Checks of the arguments that all data modules take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lion_lightning.data.sources.source import Source


def check_sources(sources: Sequence[Source], validation: Sequence[Source] | None, validation_share: float) -> None:
    """Refuse sources of the same name, and a validation share that is out of range."""
    for named in (sources, validation or ()):
        for label, count in Counter(source.label for source in named).items():
            if count > 1:
                raise ValueError(f"{count} sources are called {label!r}; give each another `name`")
    if not 0 <= validation_share < 1:
        raise ValueError(f"data.validation_share is {validation_share}; give a share of at least 0 and below 1")
    if validation and validation_share:
        raise ValueError("data.validation and data.validation_share are both set; leave one of them out")


def check_max_positions(max_length: int, module: Any) -> None:
    """Refuse sequences that are longer than a model's positions.

    Args:
        max_length: Most tokens of a sequence.
        module: The module that trains, if there is one; it says ``max_positions`` if it knows of a limit.
    """
    positions = getattr(module, "max_positions", None)
    if isinstance(positions, int) and max_length > positions:
        raise ValueError(
            f"data.max_length is {max_length}, but the model has positions for {positions} tokens; "
            f"set data.max_length to {positions} or less"
        )


def check_at_least(**arguments: tuple[int, int]) -> None:
    """Refuse values below a minimum.

    Args:
        **arguments: Value and minimum of each argument.
    """
    for name, (value, least) in arguments.items():
        if value < least:
            raise ValueError(f"data.{name} is {value}; give at least {least}")
