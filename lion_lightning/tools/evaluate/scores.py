"""Scores of a judge: means by category, and win rates against another model."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch

from lion_lightning.judges.base import Judge, JudgeScores, score_answers
from lion_lightning.readiness import opened
from lion_lightning.tools.evaluate.intervals import Interval, bootstrap
from lion_lightning.types import Answer, Prompt


def accuracy(scores: Sequence[float], prompts: Sequence[Prompt], by: str | None = None) -> dict[str, Any]:
    """Mean score of all answers and of each category, with bootstrap intervals over the prompts.

    With a verifier as judge, this is the accuracy.

    Args:
        scores: ``(prompts,)`` scores.
        prompts: The prompts.
        by: Column of the prompts' rows with their category; None for no categories.

    Raises:
        ValueError: A row does not have this column.
    """
    found: dict[str, list[float]] = {}
    if by is not None:
        for category, score in zip(categories(prompts, by), scores, strict=True):
            found.setdefault(category, []).append(score)
    return {**summary(scores), "by": {category: summary(values) for category, values in found.items()}}


def categories(prompts: Sequence[Prompt], by: str) -> list[str]:
    """The category of each prompt, from the column ``by`` of its row.

    Raises:
        ValueError: A row does not have this column; the message names the row.
    """
    for prompt in prompts:
        if by not in prompt.row:
            raise ValueError(
                f"{prompt.where}: `by` names the column {by!r}, but the row has {', '.join(prompt.row) or 'no columns'}"
            )
    return [str(prompt.row[by]) for prompt in prompts]


def summary(values: Sequence[float], groups: Sequence[Hashable] | None = None) -> dict[str, Any]:
    """Mean, bootstrap interval (over ``groups``, as of :func:`bootstrap`) and count, as plain data."""
    return {**bootstrap(values, groups=groups)._asdict(), "count": len(values)}


def right_and_parts(judged: JudgeScores) -> dict[str, Any]:
    """Of first answers: ``right``, the share of right ones, and ``parts``, the mean of each part of a combined judge.

    Both have bootstrap intervals over the prompts. What the judge does not say, or the score says already, is left out;
    so is what a part has not rated.
    """
    found: dict[str, Any] = {}
    if judged.right is not None and judged.right != [[score == 1 for score in row] for row in judged.scores]:
        found["right"] = summary([float(row[0]) for row in judged.right])
    if len(judged.by_judge) > 1:
        found["parts"] = {}
        for name, scores in judged.by_judge.items():
            if rated := [row[0] for row in scores if not math.isnan(row[0])]:
                found["parts"][name] = summary(rated)
    return found


def score_all(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
    """Scores of :func:`judge_all`."""
    return judge_all(judge, prompts, answers).scores


def judge_all(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer]]) -> JudgeScores:
    """Load a judge, score answers and free the judge's memory.

    Raises:
        ValueError: The judge fails, or returns an invalid score.
    """
    with opened(judge, torch.device("cuda" if torch.cuda.is_available() else "cpu")):
        return score_answers(judge, prompts, [[one.text for one in row] for row in answers])


def win_rate(
    judge: Judge, prompts: Sequence[Prompt], ours: Sequence[Answer], theirs: Sequence[Answer]
) -> dict[str, Any]:
    """Win rate of a model's answers against another model's, judged in both orders.

    A tie counts half, as does a win in one order and a loss in the other. Judges prefer long answers, so there is also
    a win rate over the prompts whose answers differ by less than 20% in length.

    Args:
        judge: The judge, which sees both answers to a prompt at once.
        prompts: The prompts.
        ours: Answers of the first model.
        theirs: Answers of the second model.

    Returns:
        ``win_rate`` with its bootstrap interval over the prompts; shares of ``ties`` and of ``disagreements``, where
        the preference changes with the order; mean ``lengths`` in characters; ``like_length``, the win rate over
        answers of similar length, or None.
    """
    pairs = list(zip(ours, theirs, strict=True))
    # One call, so that the judge's model is loaded once.
    both = score_all(judge, [*prompts, *prompts], [*pairs, *((b, a) for a, b in pairs)])
    wins, similar = [], []
    ties = disagreements = 0
    for (a, b), scores, swapped in zip(pairs, both[: len(pairs)], both[len(pairs) :], strict=True):
        first, second = _preferred(*scores), -_preferred(*swapped)
        win = 0.5 + (first + second) / 4  # 0, 1/4, ..., 1
        wins.append(win)
        ties += first == second == 0
        disagreements += first != second
        short, long = sorted((len(a.text), len(b.text)))
        if long == 0 or short / long > 0.8:
            similar.append(win)
    return {
        "win_rate": summary(wins),
        "ties": ties / len(pairs),
        "disagreements": disagreements / len(pairs),
        "lengths": [fmean(len(a.text) for a, _ in pairs), fmean(len(b.text) for _, b in pairs)],
        "like_length": summary(similar) if similar else None,
    }


def gain(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Difference of two models' mean scores on the same prompts, with a paired bootstrap interval."""
    return bootstrap(np.subtract(ours, theirs).tolist())


def _preferred(ours: float, theirs: float) -> int:
    return (ours > theirs) - (ours < theirs)
