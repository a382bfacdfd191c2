"""Curricula: the order in which prompts are asked, by what earlier rounds have measured of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from statistics import fmean
from typing import Any

from typing_extensions import override

from lion_lightning.rollouts.rounds import JudgedPrompt


class Curriculum(ABC):
    """Orders the prompts that a round may ask: a number is measured of each judged prompt, and gives it a place.

    Prompts of the lowest place are asked first, those of one place as they come without a curriculum. Each is asked as
    often as without one: as often as the ``fraction`` of its source says.

    Args:
        rounds: Folder of the rounds of another run, which measured some or all of the prompts; None for none. What this
            run measures of a prompt replaces it.
    """

    def __init__(self, rounds: str | Path | None = None) -> None:
        self.rounds = rounds

    @abstractmethod
    def measure(self, judged: JudgedPrompt) -> float | None:
        """Measure a judged prompt; None for nothing, and what an earlier round measured then stands."""

    @abstractmethod
    def place(self, measured: float | None) -> float:
        """Place of a prompt in the order.

        Args:
            measured: By the latest round that asked it; None if none did.

        Returns:
            Lower is asked earlier; infinity for a prompt that is only asked, with a warning, if no other is left.
        """

    def misfit(self, judge: Any) -> str:
        """Problem with the rounds of a judge, with the fix; empty if there is none."""
        return ""

    def identity(self) -> dict[str, Any]:
        """Settings that decide the order."""
        return {"curriculum": type(self).__qualname__, **vars(self)}


class PassRates(Curriculum):
    """Asks again what the policy answers right sometimes, and what it always or never does only if no other is left.

    The pass rate of a prompt is the share of right ones among its sampled answers in the latest round that asked it.
    Prompts that were not asked yet come as they come. Of answers that are all right, or all wrong, a group objective
    learns nothing.

    Args:
        lowest: Rates have to be above it; below 0 for prompts that were never right to come again.
        highest: Rates have to be below it; above 1 for prompts that were always right to come again.
        threshold: An answer is right if it scores so much; None for what the judge says, as ``VerifierJudge`` does.
        rounds: Folder of the rounds of another run, e.g. of one that asked all prompts once.

    Raises:
        ValueError: The bounds leave no rate between them.
    """

    def __init__(
        self,
        lowest: float = 0.0,
        highest: float = 1.0,
        threshold: float | None = None,
        rounds: str | Path | None = None,
    ) -> None:
        super().__init__(rounds)
        if not lowest < highest or lowest >= 1 or highest <= 0:
            raise ValueError(f"PassRates: no rate is above {lowest} and below {highest}; give bounds such as 0 and 1")
        self.lowest, self.highest, self.threshold = lowest, highest, threshold

    @override
    def measure(self, judged: JudgedPrompt) -> float | None:
        right = judged.right
        if self.threshold is not None:
            right = tuple(score >= self.threshold for score in judged.scores)
        return fmean(right) if right else None

    @override
    def place(self, measured: float | None) -> float:
        return 0.0 if measured is None or self.lowest < measured < self.highest else math.inf

    @override
    def misfit(self, judge: Any) -> str:
        says = getattr(judge, "right_from", None)
        if self.threshold is not None or self.rounds is not None or says not in (None, {}):
            return ""
        return f"{type(judge).__name__} does not say which answers are right; use VerifierJudge, or set `threshold`"
