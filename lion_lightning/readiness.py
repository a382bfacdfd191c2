"""Samplers and judges of any class: checked early for what they lack, and opened for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol, Self, runtime_checkable

from lion_lightning.types import Prompt

NUM_PROMPTS = 64
"""Number of prompts that are checked."""


@runtime_checkable
class ChecksReady(Protocol):
    """A sampler, judge or verifier that can check its requirements before training."""

    def check_ready(self, prompts: Sequence[Prompt], /) -> None:
        """Raise what the first call would raise.

        Args:
            prompts: Some of the prompts.
        """


def require_ready(parts: Iterable[Any], prompts: Sequence[Prompt]) -> None:
    """Check all samplers and judges that can be checked.

    Args:
        parts: Samplers and judges of any class, or None.
        prompts: The prompts; the first :data:`NUM_PROMPTS` are used.

    Raises:
        ValueError: A requirement is missing.
        ModuleNotFoundError: A package is not installed.
    """
    for part in parts:
        if isinstance(part, ChecksReady):
            part.check_ready(prompts[:NUM_PROMPTS])


class Opened:
    """A sampler or judge that is opened when it is first needed, and closed at the end of the block or before.

    Each of ``open`` and ``close`` is called where there is one.

    Args:
        part: A sampler or judge of any class.
        argument: Argument of ``open``: the policy of a sampler, the device of a judge.
    """

    def __init__(self, part: Any, argument: Any) -> None:
        self.part, self._argument, self._is_open = part, argument, False

    def open(self) -> None:
        """Open the part, unless it is open."""
        if not self._is_open and hasattr(self.part, "open"):
            self.part.open(self._argument)
        self._is_open = True

    def close(self) -> None:
        """Close the part, if it is open."""
        if self._is_open:
            self._is_open = False
            if hasattr(self.part, "close"):
                self.part.close()

    def __enter__(self) -> Self:
        """Open nothing yet."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the part, if it is open."""
        self.close()


@contextmanager
def opened(part: Any, argument: Any) -> Iterator[None]:
    """Open a sampler or judge for the block, and close it after; see :class:`Opened`."""
    with Opened(part, argument) as found:
        found.open()
        yield


def require_package(module: str, whose: str, what: str, extra: str) -> None:
    """Check that an optional package is installed, without importing it.

    Args:
        module: Name of its module.
        whose: The class that needs it.
        what: Name of the package, for the message.
        extra: The extra of this package that installs it.

    Raises:
        ModuleNotFoundError: The package is not installed.
    """
    if find_spec(module) is None:
        raise ModuleNotFoundError(f"{whose} needs {what}: pip install 'lion-lightning[{extra}]'")
