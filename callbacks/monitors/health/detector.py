"""Base class of the detectors, and what they are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any, ClassVar, NamedTuple

from lion_lightning.callbacks.monitors.health.findings import Finding


class Step(NamedTuple):
    """What was logged at an optimizer step.

    Attributes:
        number: Optimizer steps made, this one included.
        metrics: Metrics of training by name, without ``train/``; ``loss`` is always among them.
        is_scaled: True under ``16-mixed``, whose scaler leaves out steps with gradients that are not finite.
    """

    number: int
    metrics: Mapping[str, float]
    is_scaled: bool = False


class Detector:
    """Finds one symptom of a run that goes wrong. A subclass overrides what it wants to see.

    Attributes:
        symptom: Name of the symptom.
        advice: What it usually means and what to do, without a full stop at the end.
        names_rows: True if a finding in a step is about the rows of that step.
        memory: Numbers that are kept from call to call, by name. They are saved in checkpoints, so that a resumed run
            finds what one run would have found.
    """

    symptom: ClassVar[str]
    advice: ClassVar[str]
    names_rows: ClassVar[bool] = False

    def __init__(self) -> None:
        self.memory: dict[str, list[float]] = {}

    def on_step(self, step: Step) -> Finding | None:
        """See an optimizer step."""
        return None

    def finding(self, step: int, value: float, limit: float, seen: str, **more: Any) -> Finding:
        """A finding of this symptom; arguments as of :class:`Finding`."""
        return Finding(self.symptom, step, value, limit, seen, self.advice, **more)

    def remember(self, name: str, value: float, most: int) -> list[float]:
        """Add a number to a list of the memory, which keeps the last ``most``, and return the list."""
        numbers = self.memory.setdefault(name, [])
        numbers.append(value)
        del numbers[:-most]
        return numbers


class Change(NamedTuple):
    """A mean that has changed from the start of a run to now.

    Attributes:
        start: Mean at the start.
        now: Mean of the last values.
        error: Standard error of the difference.
    """

    start: float
    now: float
    error: float

    @classmethod
    def of(cls, first: list[float], last: list[float]) -> Change:
        """From two or more values of each."""
        variance = stdev(first) ** 2 / len(first) + stdev(last) ** 2 / len(last)
        return cls(fmean(first), fmean(last), math.sqrt(variance))

    def exceeds(self, difference: float, errors: float = 3.0) -> bool:
        """True for a rise of at least ``difference`` that is at least so many standard errors from none."""
        rise = self.now - self.start
        return rise >= difference and rise >= errors * self.error
