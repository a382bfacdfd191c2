"""This process's place among the others of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


class Process:
    """A process's place among the others; this one is alone. Modules make one that knows their trainer.

    Args:
        device: Where the model is.
        precision: Name of the precision that :meth:`autocast` gives; a part of what values come from.
    """

    def __init__(self, device: torch.device | str = "cpu", precision: str = "32-true") -> None:
        self.device, self.precision = device, precision

    @property
    def is_first(self) -> bool:
        """Whether this process shows progress."""
        return True

    def autocast(self) -> AbstractContextManager[Any]:
        """Precision of a forward."""
        return nullcontext()

    def all_agree(self, flag: bool) -> bool:
        """Whether the flag is set in every process."""
        return flag

    def wait(self) -> None:
        """Wait for the others."""

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait for the others at the end, and fail where one of them does, so that none goes on alone.

        Raises:
            OSError: Another process has failed, and tells itself why.
        """
        try:
            yield
        except Exception:
            self.all_agree(False)
            raise
        if not self.all_agree(True):
            raise OSError("another process has failed; its own message says why")
