"""Preference pairs as the readers of rows give them."""

from __future__ import annotations

import math

from lion_lightning.data.formats.pairing import PromptAnswer, PromptAnswers


def pair_of(chosen: PromptAnswer, rejected: PromptAnswer, *scores: float) -> PromptAnswers:
    """Two answers to one prompt, with their scores where they are known."""
    return PromptAnswers((chosen, rejected), scores or (math.nan, math.nan), ((0, 1),))
