"""Reward shaping: what an answer's length, or its lack of an end, makes of its score."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from typing_extensions import override

from lion_lightning.types import Answer


class RewardShaping(ABC):
    """Changes the score of an answer, after the judge and before pairs, groups and advantages are made.

    What it adds is stored with the round as a separate part, under the name of its class.
    """

    @abstractmethod
    def shape(self, answer: Answer, score: float) -> float:
        """Return the new score.

        Args:
            answer: The answer, with ``token_ids`` and ``finish_reason`` (``length`` if it was cut off).
            score: Its score, by the judge and the shapings before this one.
        """

    def misfit(self, max_new_tokens: int | None, keep_unfinished: bool) -> str:
        """Problem with the run's settings, with the fix; empty if there is none.

        Args:
            max_new_tokens: Limit of the sampler; None if that is not known.
            keep_unfinished: Whether answers that were cut off are trained on.
        """
        return ""

    def identity(self) -> dict[str, Any]:
        """Settings that determine the scores."""
        return {"shaping": type(self).__name__, **vars(self)}


class UnfinishedScore(RewardShaping):
    """A fixed score in place of that of an answer that was cut off, right or wrong.

    -10 in TÜLU 3 (arXiv 2411.15124, section 6.2), next to 10 for a right answer; 0 in TÜLU 3.1.

    Args:
        score: The score.

    Raises:
        ValueError: It is not finite.
    """

    def __init__(self, score: float = -10.0) -> None:
        if not math.isfinite(score):
            raise ValueError(f"UnfinishedScore: score is {score}; give a finite number")
        self.score = score

    @override
    def shape(self, answer: Answer, score: float) -> float:
        return self.score if answer.finish_reason == "length" else score

    @override
    def misfit(self, max_new_tokens: int | None, keep_unfinished: bool) -> str:
        if keep_unfinished:
            return ""
        return "no answer that was cut off is trained on, so its score has no effect; set keep_unfinished: true"


class SoftOverlongPunishment(RewardShaping):
    r"""DAPO's punishment of long answers (arXiv 2503.14476, eq. 13), added to the score.

    For an answer of :math:`|y|` tokens, the one that ends it included:

    .. math::
        0 \text{ up to } L_{max} - L_{cache}, \qquad
        \frac{L_{max} - L_{cache} - |y|}{L_{cache}} \text{ up to } L_{max}, \qquad -1 \text{ beyond}

    Args:
        max_tokens: :math:`L_{max}`: the sampler's ``max_new_tokens``; 20,480 in the paper.
        buffer: :math:`L_{cache}`: the last tokens before that, over which the punishment grows; 4,096 in the paper.
        weight: Factor of the punishment; 1 in the paper, where a right answer scores 1 and a wrong one -1.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(self, max_tokens: int, buffer: int, weight: float = 1.0) -> None:
        if not 1 <= buffer <= max_tokens:
            given = f"buffer is {buffer} and max_tokens {max_tokens}"
            raise ValueError(f"SoftOverlongPunishment: {given}; give 1 <= buffer <= max_tokens")
        if not 0 < weight < math.inf:
            raise ValueError(f"SoftOverlongPunishment: weight is {weight}; give a number above 0")
        self.max_tokens, self.buffer, self.weight = max_tokens, buffer, weight

    @override
    def shape(self, answer: Answer, score: float) -> float:
        over = len(answer.token_ids or ()) - (self.max_tokens - self.buffer)
        return score - self.weight * min(max(over / self.buffer, 0.0), 1.0)

    @override
    def misfit(self, max_new_tokens: int | None, keep_unfinished: bool) -> str:
        if max_new_tokens in (None, self.max_tokens):
            return ""
        return f"max_tokens is {self.max_tokens}, but the sampler's max_new_tokens is {max_new_tokens}; set them alike"
