"""Base class of the detectors, and the data and metrics that they see."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pvariance
from typing import Any, ClassVar, NamedTuple

from lion_lightning.callbacks.monitors.health.findings import Finding
from lion_lightning.rollouts.rollout import Rollout

MOST_ROWS = 3
"""Rows that a finding names."""


class Step(NamedTuple):
    """Metrics of an optimizer step.

    Attributes:
        number: Optimizer steps made, this one included.
        metrics: Metrics of training by name, without ``train/``; ``loss`` is always among them.
        is_scaled: True under ``16-mixed``, whose scaler leaves out steps with gradients that are not finite.
        has_length_filter: True if the data module has ``max_length_ratio``, which leaves out pairs by their lengths.
    """

    number: int
    metrics: Mapping[str, float]
    is_scaled: bool = False
    has_length_filter: bool = False


class Pairs(NamedTuple):
    """Preference pairs that the run trains on.

    Attributes:
        read: Pairs of the data.
        left_out: Pairs of these that the data module has left out, by cause.
        answers: Tokens of chosen and rejected of those that are kept, or of an even draw of them.
        where: Place of the row of a pair, by its position among ``answers``.
    """

    read: int
    left_out: Mapping[str, int]
    answers: Sequence[tuple[Sequence[int], Sequence[int]]]
    where: Callable[[int], str]


class Sampled(NamedTuple):
    """Answers of a round of on-policy sampling.

    Attributes:
        step: Optimizer steps made when its epoch begins.
        number: The round's number.
        rollouts: Its prompts to train on, with answers and their scores.
    """

    step: int
    number: int
    rollouts: Sequence[Rollout]

    def places(self, which: Sequence[bool]) -> tuple[str, ...]:
        """Places of the first of some prompts."""
        chosen = [rollout.prompt.where for rollout, is_chosen in zip(self.rollouts, which, strict=True) if is_chosen]
        return tuple(chosen[:MOST_ROWS])


class MeanChange(NamedTuple):
    """A mean that has changed since the start of a run.

    Attributes:
        start: Mean at the start.
        now: Mean of the last values.
        error: Standard error of the difference.
        spread: Standard deviation of the values at the start.
    """

    start: float
    now: float
    error: float
    spread: float

    @property
    def rise(self) -> float:
        """By how much it has risen."""
        return self.now - self.start

    def is_sure(self, errors: float = 3.0) -> bool:
        """True if it is at least so many standard errors from none."""
        return abs(self.rise) >= errors * self.error and self.rise != 0  # constant values have an error of 0


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

    def on_pairs(self, pairs: Pairs) -> Finding | None:
        """See the preference pairs of the data, before the first step."""
        return None

    def on_step(self, step: Step) -> Finding | None:
        """See an optimizer step."""
        return None

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> Finding | None:
        """See the metrics of a validation, without ``val/``; also of the one before the first step."""
        return None

    def on_round(self, sampled: Sampled) -> Finding | None:
        """See a round of on-policy sampling, before it is trained on."""
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

    def since_first(self, name: str, values: Sequence[float]) -> MeanChange | None:
        """The change of a mean since the first call for this name; None in that call, or without values.

        Args:
            name: Under which the first mean is remembered.
            values: Independent ones, e.g. one for each prompt; NaN where unknown.
        """
        known = [value for value in values if not math.isnan(value)]
        if not known:
            return None
        mean, variance, number = fmean(known), pvariance(known), len(known)
        if name not in self.memory:
            self.memory[name] = [mean, variance, number]
            return None
        first, first_variance, first_number = self.memory[name]
        # the standard error of a difference of independent means
        error = math.sqrt(variance / number + first_variance / first_number)
        return MeanChange(first, mean, error, math.sqrt(first_variance))

    def since_start(self, name: str, value: float, window: int) -> MeanChange | None:
        """The change from the first ``window`` values under a name to the last ones; None before both are known.

        Args:
            name: Under which values are remembered.
            value: The next one.
            window: Values of each mean.
        """
        first = self.memory.setdefault(f"first {name}", [])
        if len(first) < window:
            first.append(value)
            return None
        last = self.remember(name, value, window)
        if len(last) < window:
            return None
        # variance of a mean: the unbiased variance, pvariance * window / (window - 1), over the window
        error = math.sqrt((pvariance(first) + pvariance(last)) / (window - 1))
        return MeanChange(fmean(first), fmean(last), error, math.sqrt(pvariance(first)))
