"""Several judges as one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import torch

from lion_lightning.judges.base import Judge, LoadableJudge, Scores
from lion_lightning.readiness import require_ready
from lion_lightning.types import Prompt


class WeightedJudge:
    """The weighted sum of several judges' scores; what each of them said is stored with the round.

    Args:
        judges: The judges.
        weights: Weight of each; None for 1 each.
        names: Name of each, for what is stored; None for their classes' names, numbered where they repeat.
        standardize: Whether each judge's scores of a prompt's answers are first brought to mean 0 and deviation 1, for
            judges on different scales. A judge that finds all answers alike then adds nothing.

    Raises:
        ValueError: There is no judge, or weights or names are too few or too many.
    """

    def __init__(
        self,
        judges: list[Judge],
        weights: list[float] | None = None,
        names: list[str] | None = None,
        standardize: bool = False,
    ) -> None:
        if not judges:
            raise ValueError("WeightedJudge: judges is empty; name at least one")
        self.judges, self.standardize = judges, standardize
        self.weights = [1.0] * len(judges) if weights is None else weights
        self.names = _names(judges) if names is None else names
        for what, values in (("weights", self.weights), ("names", set(self.names))):
            if len(values) != len(judges):
                raise ValueError(f"WeightedJudge: {len(judges)} judges and {len(values)} {what}; give one to each")

        if not all(math.isfinite(weight) for weight in self.weights):
            raise ValueError(f"WeightedJudge: weights are {self.weights}; give finite numbers")

    def identity(self) -> dict[str, Any]:
        """What decides the scores."""
        parts = [judge.identity() if hasattr(judge, "identity") else type(judge).__qualname__ for judge in self.judges]
        weighed = dict(zip(self.names, zip(parts, self.weights, strict=True), strict=True))
        return {"judge": type(self).__name__, "parts": weighed, "standardize": self.standardize}

    def open(self, device: torch.device) -> None:
        """See :class:`~lion_lightning.judges.base.LoadableJudge`."""
        for judge in self.judges:
            if isinstance(judge, LoadableJudge):
                judge.open(device)

    def close(self) -> None:
        """See :class:`~lion_lightning.judges.base.LoadableJudge`."""
        for judge in self.judges:
            if isinstance(judge, LoadableJudge):
                judge.close()

    def check_ready(self, prompts: Sequence[Prompt]) -> None:
        """See :class:`~lion_lightning.readiness.ChecksReady`."""
        require_ready(self.judges, prompts)

    def parts(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> dict[str, Scores]:
        """Scores of each judge, by its name."""
        return {name: judge.score(prompts, answers) for name, judge in zip(self.names, self.judges, strict=True)}

    def combine(self, parts: Mapping[str, Scores]) -> list[list[float]]:
        """The weighted sum of those."""
        given = [[_standard(row) if self.standardize else row for row in parts[name]] for name in self.names]
        return [[self._sum(scores) for scores in zip(*rows, strict=True)] for rows in zip(*given, strict=True)]

    def _sum(self, scores: Sequence[float]) -> float:
        return sum(weight * score for weight, score in zip(self.weights, scores, strict=True))

    def score(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """See :class:`~lion_lightning.judges.base.Judge`."""
        return self.combine(self.parts(prompts, answers))


def _names(judges: Sequence[Judge]) -> list[str]:
    kinds = [type(judge).__name__ for judge in judges]
    return [kind if kinds.count(kind) == 1 else f"{kind} {place}" for place, kind in enumerate(kinds)]


def _standard(scores: Sequence[float]) -> list[float]:
    deviation = pstdev(scores)
    return [(score - fmean(scores)) / deviation if deviation else 0.0 for score in scores]
