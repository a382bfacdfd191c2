"""Warnings about stages that are checked before training."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typing_extensions import override

from lion_lightning.printing import one_line


class StageWarnings(logging.Handler):
    """Prints warnings with the stage's name, each once, and keeps them: its run need not repeat them.

    Attributes:
        found: Stage and text of each warning, in order.
        stage: Name of the stage that is checked.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: dict[tuple[str, str], None] = {}
        self.stage = ""

    def add(self, text: str) -> None:
        """Warn of something."""
        warning = self.stage, one_line(text)
        if warning not in self.found:
            self.found[warning] = None
            print(f"warning: {self.stage}: {warning[1]}", file=sys.stderr, flush=True)

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.add(record.getMessage())

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Take what the package warns of within the block."""

        def show(message: Warning | str, *place: Any, **options: Any) -> None:
            self.add(str(message))

        package = logging.getLogger("lion_lightning")
        handlers, level, self.stage = package.handlers, package.level, stage
        package.handlers = [self]
        package.setLevel(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = show
                yield
        finally:
            package.handlers = handlers
            package.setLevel(level)
