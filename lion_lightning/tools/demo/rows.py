"""Rows of the demo task: conversations, preference pairs and prompts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from operator import attrgetter
from random import Random
from typing import Any

from lion_lightning.tools.demo.task import FAMILIES
from lion_lightning.tools.demo.writers import Written, write

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


def make_written(count: int, random: Random, taken: set[str]) -> list[Row]:
    """Make conversations with the answers of imperfect writers; arguments as of :func:`make_rows`."""
    rows = []
    for family, question, drawn in _questions(count, random, taken):
        rows.append({"messages": [_turn("user", question), _turn("assistant", write(family, drawn, random).text)]})
    return rows


def make_pairs(count: int, random: Random, taken: set[str]) -> list[Row]:
    """Make prompts with the better and the worse of two such answers; arguments as of :func:`make_rows`."""
    rows = []
    for family, question, drawn in _questions(count, random, taken):
        worse, better = sorted(_apart(2, family, drawn, random), key=attrgetter("score"))
        turns = {"chosen": [_turn("assistant", better.text)], "rejected": [_turn("assistant", worse.text)]}
        rows.append({"prompt": [_turn("user", question)], **turns})
    return rows


def make_ranked(count: int, random: Random, taken: set[str]) -> list[Row]:
    """Make prompts with three such answers and their scores; arguments as of :func:`make_rows`."""
    rows = []
    for family, question, drawn in _questions(count, random, taken):
        answers = _apart(3, family, drawn, random)
        turns = [[_turn("assistant", answer.text)] for answer in answers]
        scores = [answer.score for answer in answers]
        rows.append({"prompt": [_turn("user", question)], "answers": turns, "scores": scores})
    return rows


def make_prompts(count: int, random: Random, taken: set[str]) -> list[Row]:
    """Make questions with their family and the best answer, for a verifier; arguments as of :func:`make_rows`."""
    return [
        {"family": name, "question": question, "answer": f"{FAMILIES[name].solve(drawn)}."}
        for name, question, drawn in _questions(count, random, taken)
    ]


def _apart(count: int, family: str, drawn: str, random: Random) -> list[Written]:
    """Answers to a question, in any order: writers are asked until so many scores differ."""
    answers: dict[float, Written] = {}
    while len(answers) < count:
        answer = write(family, drawn, random)
        answers.setdefault(answer.score, answer)
    return list(answers.values())


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
