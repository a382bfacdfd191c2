"""What a judge says of answers: the mean score, by kinds of prompts, and one model's answers against another's."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch

from lion_lightning.judges.base import Judge, score_answers
from lion_lightning.readiness import opened
from lion_lightning.tools.evaluate.intervals import Interval, bootstrap
from lion_lightning.types import Answer, Prompt


def accuracy(scores: Sequence[float], prompts: Sequence[Prompt], by: str | None = None) -> dict[str, Any]:
    """Mean score of the answers to all prompts, and of each kind, with bootstrap intervals over the prompts.

    With a verifier as judge, that is the share of right answers.

    Args:
        scores: ``(prompts,)``.
        prompts: What was asked.
        by: Column of the prompts' rows that names their kind; None for no kinds.

    Raises:
        ValueError: If a row has no such column.
    """
    found: dict[str, list[float]] = {}
    if by is not None:
        for kind, score in zip(kinds(prompts, by), scores, strict=True):
            found.setdefault(kind, []).append(score)
    return {**summary(scores), "by": {kind: summary(values) for kind, values in found.items()}}


def kinds(prompts: Sequence[Prompt], by: str) -> list[str]:
    """What kind each prompt is of.

    Args:
        prompts: What is asked.
        by: Column of the prompts' rows that names their kind.

    Raises:
        ValueError: If a row has no such column; the message names its place.
    """
    for prompt in prompts:
        if by not in prompt.row:
            raise ValueError(
                f"{prompt.where}: there is no column {by!r} to group by; the row has {', '.join(prompt.row) or 'none'}"
            )
    return [str(prompt.row[by]) for prompt in prompts]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """A mean with its interval over the prompts, as plain data."""
    return {**bootstrap(values)._asdict(), "count": len(values)}


def scored(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
    """Scores of a judge, which is opened before and closed after it is asked.

    Args:
        judge: The judge.
        prompts: What was asked.
        answers: One or more answers to each.

    Raises:
        ValueError: If the judge fails, or gives no score.
    """
    with opened(judge, torch.device("cuda" if torch.cuda.is_available() else "cpu")):
        return score_answers(judge, prompts, [[one.text for one in row] for row in answers]).scores


def win_rate(
    judge: Judge, prompts: Sequence[Prompt], ours: Sequence[Answer], theirs: Sequence[Answer]
) -> dict[str, Any]:
    """How often a judge prefers the first model's answer to the second's, asked in both orders.

    A win in one order and a loss in the other count half, as ties do. Judges like long answers, so the share is also
    given for the prompts whose answers differ by less than a fifth in length.

    Args:
        judge: The judge; it sees both answers to a prompt at once.
        prompts: What was asked.
        ours: Answers of the first model.
        theirs: Answers of the second.

    Returns:
        ``win_rate`` with its bootstrap interval over the prompts; ``ties``, ``disagreements`` (the preferred answer
        changes with the order), as shares of the prompts; mean ``lengths`` in characters; ``like_length``.
    """
    pairs = list(zip(ours, theirs, strict=True))
    # In one call, so that a judge that holds a model loads it once.
    both = scored(judge, [*prompts, *prompts], [*pairs, *((b, a) for a, b in pairs)])
    forward = [_preferred(*row) for row in both[: len(pairs)]]
    backward = [-_preferred(*row) for row in both[len(pairs) :]]
    worth = [0.5 + (one + other) / 4 for one, other in zip(forward, backward, strict=True)]
    like = [value for value, (a, b) in zip(worth, pairs, strict=True) if _alike(a, b)]
    return {
        "win_rate": summary(worth),
        "ties": fmean(float(a == b == 0) for a, b in zip(forward, backward, strict=True)),
        "disagreements": fmean(float(a != b) for a, b in zip(forward, backward, strict=True)),
        "lengths": [fmean(len(a.text) for a, _ in pairs), fmean(len(b.text) for _, b in pairs)],
        "like_length": summary(like) if like else None,
    }


def gain(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Difference of two models' mean scores, with a paired bootstrap over the prompts.

    Args:
        ours: ``(prompts,)`` scores of the first model.
        theirs: The same of the second, to the same prompts.
    """
    return bootstrap(np.subtract(ours, theirs).tolist())


def _preferred(ours: float, theirs: float) -> int:
    return (ours > theirs) - (ours < theirs)


def _alike(a: Answer, b: Answer) -> bool:
    short, long = sorted((len(a.text), len(b.text)))
    return long == 0 or short / long > 0.8
