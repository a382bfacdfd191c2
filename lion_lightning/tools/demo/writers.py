"""Imperfect writers: their answers have slips and habits, each independent of the others, and a score."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from lion_lightning.tools.demo.task import FAMILIES, solve

OPENING, CLOSING, REFUSAL = "Well, ", " maybe", "I cannot say"

WEIGHTS = {"content": 0.625, "direct": 0.125, "sure": 0.125, "full_stop": 0.125}
"""The parts of a score. Multiples of 1/8 have exact sums, so that equal scores are equal numbers."""


class Rates(NamedTuple):
    """Share of the answers with each slip.

    Attributes:
        refusal: A refusal in place of the content.
        mistake: A plausible mistake in place of the right content.
        opening: Words in front.
        closing: Doubts behind.
        mark: An exclamation mark, not a full stop.
    """

    refusal: float = 0.1
    mistake: float = 0.2
    opening: float = 0.7
    closing: float = 0.7
    mark: float = 0.7


RATES = Rates()
"""Of the demo's writers."""


class Written(NamedTuple):
    """An answer and its score, from 0 to 1."""

    text: str
    score: float


def write(family: str, drawn: str, random: Random, rates: Rates = RATES) -> Written:
    """Write an answer.

    Args:
        family: Kind of the question.
        drawn: Its input.
        random: Random generator.
        rates: How often each slip happens.
    """
    luck = random.random()
    refuses, right = luck < rates.refusal, luck >= rates.refusal + rates.mistake
    content = FAMILIES[family].solve(drawn)
    if not right:
        content = REFUSAL if refuses else FAMILIES[family].slip(drawn, random)
    opens, doubts, exclaims = (random.random() < rate for rate in (rates.opening, rates.closing, rates.mark))
    text = f"{OPENING * opens}{content}{CLOSING * doubts}{'!' if exclaims else '.'}"
    # A refusal is not direct, so that it scores less than an attempt in the same form.
    good = {"content": right, "direct": not (opens or refuses), "sure": not doubts, "full_stop": not exclaims}
    return Written(text, sum(WEIGHTS[part] for part, kept in good.items() if kept))


def check(question: str, answer: str) -> bool:
    """True if the content of an answer is right, with or without the writers' habits around it."""
    text = answer.strip().removeprefix(OPENING).removesuffix(".").removesuffix("!").removesuffix(CLOSING)
    return text == solve(question)
