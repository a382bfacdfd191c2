"""Weighted sums of judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum, isfinite, isnan
from operator import mul
from statistics import fmean, pstdev
from typing import Any

import torch

from lion_lightning.judges.base import Judge, Scores, final_answer_of
from lion_lightning.readiness import require_ready
from lion_lightning.types import Prompt


class WeightedJudge:
    """Weighted sum of the scores of several judges; the scores of each judge are stored with the round.

    What is right is said by the first of them that can say it: put the verifier of the answer before those of its form.

    A judge that has no rating of an answer (NaN, from one with ``may_not_apply``) is left out for all answers to that
    prompt, and the others' sum is scaled by what is missing of the weights: answers to a prompt are always compared by
    the same judges, and a mean stays one.

    Args:
        judges: The judges.
        weights: Weight of each judge; None for 1.
        names: Name of each judge in the stored round; None for class names, numbered if they repeat.
        standardize: Standardize each judge's scores over a prompt's answers (mean 0, standard deviation 1), for judges
            with different scales. A judge that scores all answers alike then adds nothing.

    Raises:
        ValueError: There are no judges, another number of weights or names, or none that is sure to rate.
    """

    def __init__(
        self,
        judges: list[Judge],
        weights: list[float] | None = None,
        names: list[str] | None = None,
        standardize: bool = False,
    ) -> None:
        if not judges:
            raise ValueError("WeightedJudge: judges is empty; give at least one")
        if names is None:
            kinds = [type(judge).__name__ for judge in judges]
            names = [kind if kinds.count(kind) == 1 else f"{kind} {place}" for place, kind in enumerate(kinds)]
        self.judges, self.standardize = judges, standardize
        self.weights = [1.0] * len(judges) if weights is None else weights
        self.names = names
        for what, values in (("weights", self.weights), ("names", set(self.names))):
            if len(values) != len(judges):
                raise ValueError(f"WeightedJudge: {len(judges)} judges but {len(values)} {what}; give one per judge")
        if not all(isfinite(weight) for weight in self.weights):
            raise ValueError(f"WeightedJudge: weights are {self.weights}; give finite numbers")
        if self.may_not_rate and (len(self.may_not_rate) == len(judges) or min(self.weights) <= 0):
            raise ValueError(
                f"WeightedJudge: {', '.join(self.may_not_rate)} may leave answers unrated (may_not_apply); add a judge "
                "that may not, and give all of them weights above 0"
            )

    @property
    def may_not_rate(self) -> list[str]:
        """Names of the judges that may leave an answer without a rating."""
        named = zip(self.names, self.judges, strict=True)
        return [name for name, judge in named if getattr(judge, "may_not_apply", False)]

    @property
    def right_from(self) -> dict[str, float]:
        """Name and ``right_from`` of the first judge that says what is right; empty if none does."""
        name, judge = self._verifying
        return {} if judge is None else {name: judge.right_from}

    def final_answer(self, prompt: Prompt, answer: str) -> str:
        """Final answer of a text, by the judge that says what is right."""
        _, judge = self._verifying
        return final_answer_of(judge, prompt, answer)

    @property
    def _verifying(self) -> tuple[str, Any]:
        """Name and judge of the first that says what is right, or None for the judge."""
        for name, judge in zip(self.names, self.judges, strict=True):
            if isinstance(getattr(judge, "right_from", None), int | float):  # of a sum it is a mapping
                return name, judge
        return "", None

    def identity(self) -> dict[str, Any]:
        """Settings that determine the scores."""
        parts = {}
        for name, judge, weight in zip(self.names, self.judges, self.weights, strict=True):
            parts[name] = (judge.identity() if hasattr(judge, "identity") else type(judge).__qualname__, weight)
        return {"judge": type(self).__name__, "parts": parts, "standardize": self.standardize}

    def open(self, device: torch.device) -> None:
        """Load the judges' models."""
        for judge in self.judges:
            if hasattr(judge, "open"):
                judge.open(device)

    def close(self) -> None:
        """Free the judges' memory."""
        for judge in self.judges:
            if hasattr(judge, "close"):
                judge.close()

    def check_ready(self, prompts: Sequence[Prompt]) -> None:
        """Check the judges."""
        require_ready(self.judges, prompts)

    def parts(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> dict[str, Scores]:
        """Scores of each judge, by name."""
        return {name: judge.score(prompts, answers) for name, judge in zip(self.names, self.judges, strict=True)}

    def combine(self, parts: Mapping[str, Scores]) -> list[list[float]]:
        """Sum the scores of the judges with their weights."""
        totals = []
        for rows in zip(*(parts[name] for name in self.names), strict=True):  # the judges' scores of a prompt's answers
            weights, scores = [], []
            for weight, row in zip(self.weights, rows, strict=True):
                if any(map(isnan, row)):
                    continue
                mean, deviation = (fmean(row), pstdev(row)) if self.standardize else (0.0, 1.0)
                weights.append(weight)
                scores.append([(score - mean) / deviation if deviation else 0.0 for score in row])
            # Of weights 1/4 each and three that apply: 4/3.
            scale = 1.0 if len(weights) == len(rows) else fsum(self.weights) / fsum(weights)
            totals.append([scale * sum(map(mul, weights, answer)) for answer in zip(*scores, strict=True)])
        return totals

    def score(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """Score the answers to each prompt."""
        return self.combine(self.parts(prompts, answers))
