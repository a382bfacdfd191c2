"""What scores answers, and the check of what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from lion_lightning.errors import first_line
from lion_lightning.types import Prompt

Scores = Sequence[Sequence[float]]
"""A score for each answer to each prompt."""


class Judge(Protocol):
    """Scores answers. Any class with this method is one; nothing has to be imported for it.

    (Arguments have no types here, so that config files accept a class of any annotations, or of none.)
    """

    def score(self, prompts: Any, answers: Any, /) -> Any:
        """A score for each answer to each prompt; higher is better, equal is a tie.

        Args:
            prompts: What was asked, a sequence of :class:`~lion_lightning.types.Prompt`.
            answers: What was answered, one or more texts to each prompt, not equally many to all.

        Returns:
            :data:`Scores`.
        """


@runtime_checkable
class LoadableJudge(Protocol):
    """A judge that holds a model: opened before a round is judged, closed after it."""

    def open(self, device: torch.device) -> None:
        """Load the model to this device, if it is not there yet."""

    def close(self) -> None:
        """Give back the device's memory."""


@runtime_checkable
class CompositeJudge(Protocol):
    """A judge whose scores come from several."""

    def parts(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> Mapping[str, Scores]:
        """Scores of each judge, by its name."""

    def combine(self, parts: Mapping[str, Scores]) -> Scores:
        """The scores made of those."""


class JudgeScores(NamedTuple):
    """Checked scores.

    Attributes:
        scores: A finite score for each answer to each prompt.
        by_judge: Where they come from: the scores of each judge, by name.
    """

    scores: list[list[float]]
    by_judge: dict[str, list[list[float]]]


def score_answers(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> JudgeScores:
    """Ask a judge, and let nothing pass that is no score.

    Args:
        judge: The judge.
        prompts: What was asked.
        answers: What was answered.

    Raises:
        ValueError: The judge raised, gave too few or too many scores, or one that is no finite number; the message
            names judge and prompt.
    """
    name = type(judge).__name__
    try:
        if isinstance(judge, CompositeJudge):
            parts = {
                part: _checked(scores, part, prompts, answers) for part, scores in judge.parts(prompts, answers).items()
            }
            return JudgeScores(_checked(judge.combine(parts), name, prompts, answers), parts)
        scores = _checked(judge.score(prompts, answers), name, prompts, answers)
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"{name} failed ({first_line(error, with_type=True)}); fix the judge and rerun") from error
    return JudgeScores(scores, {name: scores})


def _checked(scores: Any, name: str, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
    rows = [list(row) for row in scores]
    if len(rows) != len(prompts):
        raise ValueError(f"{name} scored {len(rows)} of {len(prompts)} prompts; a judge scores the answers to each")
    for row, prompt, given in zip(rows, prompts, answers, strict=True):
        place = prompt.where or repr(prompt.question[:40])
        if len(row) != len(given):
            raise ValueError(f"{name} gave {len(row)} scores for the {len(given)} answers to {place}; give one to each")
        for score in row:
            if not isinstance(score, Real) or not math.isfinite(score):
                raise ValueError(f"{name} gave the score {score!r} to an answer to {place}; a score is a finite number")
    return [[float(score) for score in row] for row in rows]
