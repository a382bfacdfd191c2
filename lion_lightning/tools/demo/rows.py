"""Rows of the demo task: conversations, preference pairs and prompts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from random import Random
from typing import Any

from lion_lightning.tools.demo.task import FAMILIES

Row = dict[str, Any]


def make_rows(count: int, random: Random, taken: set[str], slips: float = 0.0) -> list[Row]:
    """Make conversations of one question and its answer, the families in turn.

    Args:
        count: How many.
        random: Random generator.
        taken: Family and input of every row so far, added to here: no two rows share an input, however it is worded.
        slips: Share of the answers that are plausible mistakes; the others are right.

    Raises:
        ValueError: If a family has no unused input left (each has room for about 5,000 rows).
    """
    rows = []
    for family, question, drawn in _questions(count, random, taken):
        kind = FAMILIES[family]
        answer = kind.slip(drawn, random) if random.random() < slips else kind.solve(drawn)
        rows.append({"messages": [_turn("user", question), _turn("assistant", answer)]})
    return rows


def make_pairs(count: int, random: Random, taken: set[str]) -> list[Row]:
    """Make prompts with a right answer and a plausible mistake; arguments as of :func:`make_rows`."""
    rows = []
    for name, question, drawn in _questions(count, random, taken):
        family = FAMILIES[name]
        answers = {"chosen": family.solve(drawn), "rejected": family.slip(drawn, random)}
        turns = {column: [_turn("assistant", answer)] for column, answer in answers.items()}
        rows.append({"prompt": [_turn("user", question)], **turns})
    return rows


def make_ranked(count: int, random: Random, taken: set[str]) -> list[Row]:
    """Make prompts with three scored answers in any order; arguments as of :func:`make_rows`.

    The right answer has the score 1, a plausible mistake 0.5, and the right answer to another input 0.
    """
    rows = []
    for name, question, drawn in _questions(count, random, taken):
        family = FAMILIES[name]
        scores = {family.solve(drawn): 1.0, family.slip(drawn, random): 0.5}
        while len(scores) < 3:  # another input may have the same answer
            scores.setdefault(family.solve(family.draw(random)), 0.0)
        answers = random.sample(list(scores), 3)
        turns = [[_turn("assistant", answer)] for answer in answers]
        rows.append({"prompt": [_turn("user", question)], "answers": turns, "scores": [scores[a] for a in answers]})
    return rows


def make_prompts(count: int, random: Random, taken: set[str]) -> list[Row]:
    """Make questions with their family and their right answer, for a verifier; arguments as of :func:`make_rows`."""
    return [
        {"family": name, "question": question, "answer": FAMILIES[name].solve(drawn)}
        for name, question, drawn in _questions(count, random, taken)
    ]


def _questions(count: int, random: Random, taken: set[str]) -> Iterator[tuple[str, str, str]]:
    """Family, question and input of each row."""
    for name in islice(cycle(FAMILIES), count):
        draws = (FAMILIES[name].draw(random) for _ in range(1000))
        drawn = next((drawn for drawn in draws if f"{name}: {drawn}" not in taken), None)
        if drawn is None:
            raise ValueError(f"the demo task has too few different inputs of the kind {name!r}; ask for fewer rows")
        taken.add(f"{name}: {drawn}")
        yield name, random.choice(FAMILIES[name].wordings).format(drawn), drawn


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
