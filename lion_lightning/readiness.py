"""What samplers and judges can say before they are needed: a package, a model, a key or a column that is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any, Protocol, runtime_checkable

from lion_lightning.types import Prompt

SHOWN = 64
"""Prompts that are shown beforehand."""


@runtime_checkable
class ChecksReady(Protocol):
    """A sampler, judge or verifier that can find out beforehand what would fail later."""

    def check_ready(self, prompts: Sequence[Prompt], /) -> None:
        """Raise what would be raised later: at the first answer, or the first score.

        Args:
            prompts: Some of those that it will be asked about.
        """


def require_ready(parts: Iterable[Any], prompts: Sequence[Prompt]) -> None:
    """Ask those that can say so whether they are ready.

    Args:
        parts: Samplers and judges, of any class; None among them is nothing.
        prompts: What will be asked; the first :data:`SHOWN` are shown.

    Raises:
        ValueError: One of them is not.
        ModuleNotFoundError: It needs a package that is not installed.
    """
    for part in parts:
        if isinstance(part, ChecksReady):
            part.check_ready(prompts[:SHOWN])


def require_package(module: str, whose: str, what: str, extra: str) -> None:
    """Find out whether an optional package is installed, without importing it.

    Args:
        module: Its module.
        whose: What needs it.
        what: Its name, as people know it.
        extra: The extra of this package that brings it.

    Raises:
        ModuleNotFoundError: It is not.
    """
    if find_spec(module) is None:
        raise ModuleNotFoundError(f"{whose} needs {what}: pip install 'lion-lightning[{extra}]'")
