"""Protocols of judges, and the check of their scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from operator import and_
from typing import Any, NamedTuple, Protocol

from lion_lightning.errors import first_line, raised_in
from lion_lightning.types import Prompt

Scores = Sequence[Sequence[float]]
"""One score per answer, in one list per prompt."""


class Judge(Protocol):
    """Scores answers. Any class with this method is a judge; it needs no import from this package.

    A judge may also have ``open(device)`` and ``close()``, which load and free its model for a round; ``identity()``;
    ``check_ready(prompts)``; ``right_from``, the score from which on an answer is right; and, if it combines the scores
    of several, ``parts`` and ``combine`` (as :class:`~lion_lightning.judges.weighted.WeightedJudge` has them), with
    ``right_from`` by the name of a part and ``may_not_rate``, the names of parts that may give NaN. A judge without
    ``right_from`` does not say what is right; one with it may have ``final_answer(prompt, answer)``: equal texts for
    answers that come to the same, by default the answer itself.

    The arguments are annotated as ``Any`` so that config files accept classes with any annotations, or none.
    """

    def score(self, prompts: Any, answers: Any, /) -> Any:
        """Score the answers to each prompt; higher is better, equal scores are a tie.

        Args:
            prompts: A sequence of :class:`~lion_lightning.types.Prompt`.
            answers: For each prompt a sequence of one or more answers (strings); their number may vary.

        Returns:
            For each prompt, in order, a sequence with one float per answer.
        """


class JudgeScores(NamedTuple):
    """Checked scores.

    Attributes:
        scores: One finite score per answer, in one list per prompt.
        by_judge: The scores of each part of a combined judge, or of the judge itself, by name; NaN where a part that
            may do so has given none.
        right: Whether each answer is right; None if the judge does not say it.
    """

    scores: list[list[float]]
    by_judge: dict[str, list[list[float]]]
    right: list[list[bool]] | None = None


def score_answers(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> JudgeScores:
    """Score the answers to each prompt with a judge and check the scores.

    Raises:
        ValueError: The judge failed, or returned another number of scores or a score that is not finite; the message
            names judge and prompt.
    """
    name = type(judge).__name__
    try:
        if hasattr(judge, "parts") and hasattr(judge, "combine"):
            parts = {}
            for part, scores in judge.parts(prompts, answers).items():
                parts[part] = _checked(scores, part, prompts, answers, part in getattr(judge, "may_not_rate", ()))
            combined = _checked(judge.combine(parts), name, prompts, answers)
            return JudgeScores(combined, parts, _right(parts, getattr(judge, "right_from", None) or {}))
        checked = _checked(judge.score(prompts, answers), name, prompts, answers)
    except Exception as error:
        if isinstance(error, ValueError | OSError) and raised_in(error).startswith("lion_lightning."):
            raise  # it says what is wrong; one of a user's judge, such as float()'s, does not say where
        raise ValueError(f"{name} failed ({first_line(error, with_type=True)}); fix the judge and rerun") from error
    limit = getattr(judge, "right_from", None)
    return JudgeScores(checked, {name: checked}, _right({name: checked}, {} if limit is None else {name: limit}))


def _right(parts: Mapping[str, Scores], right_from: Mapping[str, float]) -> list[list[bool]] | None:
    """Whether each answer reaches the limits of these parts; None without any."""
    right: list[list[bool]] | None = None
    for name, limit in right_from.items():
        found = [[score >= limit for score in row] for row in parts[name]]
        right = found if right is None else [list(map(and_, *rows)) for rows in zip(right, found, strict=True)]
    return right


def final_answer_of(part: Any, prompt: Prompt, answer: str) -> str:
    """Final answer of a text: by ``final_answer`` of a judge or verifier if it has one, else all of the text."""
    return str(part.final_answer(prompt, answer)) if hasattr(part, "final_answer") else answer.strip()


def final_answers(judge: Judge, prompt: Prompt, answers: Sequence[str]) -> list[str]:
    """Final answer of each text: equal texts for equal answers.

    Raises:
        ValueError: The judge failed; the message names judge and prompt.
    """
    try:
        return [final_answer_of(judge, prompt, answer) for answer in answers]
    except Exception as error:
        if isinstance(error, ValueError) and raised_in(error).startswith("lion_lightning."):
            raise
        found = f"{type(judge).__name__} failed at {prompt.where} ({first_line(error, with_type=True)})"
        raise ValueError(f"{found}; fix the judge and rerun") from error


def _checked(
    scores: Any, name: str, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]], may_be_nan: bool = False
) -> list[list[float]]:
    rows = [list(row) for row in scores]
    if len(rows) != len(prompts):
        raise ValueError(f"{name} returned scores for {len(rows)} of {len(prompts)} prompts; return a list for each")
    checked = []
    for row, prompt, given in zip(rows, prompts, answers, strict=True):
        place = prompt.where or repr(prompt.question[:40])
        if len(row) != len(given):
            raise ValueError(f"{name} returned {len(row)} scores for {len(given)} answers to {place}; return one each")
        for score in row:
            if not isinstance(score, Real) or not (math.isfinite(score) or (may_be_nan and math.isnan(score))):
                raise ValueError(f"{name} returned the score {score!r} for an answer to {place}; return finite numbers")
        checked.append([float(score) for score in row])
    return checked
