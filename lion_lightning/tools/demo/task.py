"""Families of instructions, with their right answers and plausible mistakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

VOWELS = "aeiou"
CONSONANTS = "bdfgklmnprst"


class Family(NamedTuple):
    """Instructions of one kind.

    Attributes:
        wordings: Ways to ask, each with ``{}`` where the input goes.
        draw: Makes an input from a random generator.
        solve: The right answer to an input.
        slip: A plausible wrong answer to an input.
    """

    wordings: tuple[str, ...]
    draw: Callable[[Random], str]
    solve: Callable[[str], str]
    slip: Callable[[str, Random], str]


def word(random: Random) -> str:
    """A made-up word of two or three syllables and no letter twice, such as ``tako`` or ``melisu``."""
    syllables = random.choice((2, 2, 3))
    consonants, vowels = random.sample(CONSONANTS, syllables), random.sample(VOWELS, syllables)
    return "".join(consonant + vowel for consonant, vowel in zip(consonants, vowels, strict=True))


def numbers(count: int, separator: str, below: int = 100) -> Callable[[Random], str]:
    """A draw of ``count`` different integers from 0 to ``below - 1``."""
    return lambda random: separator.join(map(str, random.sample(range(below), count)))


def swap(items: Sequence[str], random: Random) -> list[str]:
    """Swap two neighbors that differ."""
    places = [place for place in range(len(items) - 1) if items[place] != items[place + 1]]
    at = random.choice(places)
    return [*items[:at], items[at + 1], items[at], *items[at + 2 :]]


def swapped(solve: Callable[[str], str], separator: str = "") -> Callable[[str, Random], str]:
    """Make a mistake that swaps two neighboring parts of the right answer."""

    def slip(x: str, random: Random) -> str:
        answer = solve(x)
        return separator.join(swap(answer.split(separator) if separator else answer, random))

    return slip


def _sorted_letters(x: str) -> str:
    return "".join(sorted(x))


def _sorted_numbers(x: str) -> str:
    return " ".join(sorted(x.split(), key=int))


FAMILIES: dict[str, Family] = {
    "repeat": Family(("Repeat {}.", "Say {} again.", "Please write {} once."), word, str, swapped(str)),
    "twice": Family(
        ("Say {} twice.", "Write {} two times."),
        word,
        lambda x: f"{x} {x}",
        lambda x, random: random.choice((x, f"{x} {x} {x}")),
    ),
    "capitals": Family(
        ("Write {} in capitals.", "Shout {}!", "Put {} in upper case."),
        word,
        str.upper,
        lambda x, random: random.choice((x, x.capitalize())),
    ),
    "spell": Family(
        ("Spell {}.", "How do you spell {}?", "Write {} with dashes."),
        word,
        "-".join,
        lambda x, random: random.choice((x, "-".join(swap(x, random)))),
    ),
    "reverse": Family(
        ("Reverse {}.", "Write {} backwards.", "Turn {} around."),
        word,
        lambda x: x[::-1],
        lambda x, random: random.choice((x, "".join(swap(x[::-1], random)))),
    ),
    "sort letters": Family(
        ("Sort the letters of {}.", "Put the letters of {} in order."),
        word,
        _sorted_letters,
        swapped(_sorted_letters),
    ),
    "first letter": Family(
        ("What does {} begin with?", "First letter of {}?"),
        word,
        lambda x: x[0],
        lambda x, random: random.choice(x[1:]),
    ),
    "count letters": Family(
        ("Count the letters of {}.", "How long is {}?"),
        word,
        lambda x: str(len(x)),
        lambda x, random: str(len(x) + random.choice((-1, 1))),
    ),
    "larger": Family(
        ("Which is larger, {}?", "Which is more: {}?"),
        numbers(2, " or "),
        lambda x: max(x.split(" or "), key=int),
        lambda x, random: min(x.split(" or "), key=int),
    ),
    "add one": Family(
        ("What comes after {}?", "Add one to {}.", "Count on from {}."),
        lambda random: str(random.randrange(100, 10000)),
        lambda x: str(int(x) + 1),
        lambda x, random: str(int(x) + random.choice((-1, 2, 11))),
    ),
    "sort numbers": Family(
        ("Sort the numbers {}.", "Put {} in order, smallest first."),
        numbers(4, " ", below=10),
        _sorted_numbers,
        swapped(_sorted_numbers, " "),
    ),
}


def solve(question: str) -> str:
    """The right answer to a question of any family.

    Raises:
        ValueError: If the question has none of the known wordings.
    """
    for family in FAMILIES.values():
        for wording in family.wordings:
            before, after = wording.split("{}")
            if question.startswith(before) and question.endswith(after):
                return family.solve(question[len(before) : len(question) - len(after)])
    raise ValueError(f"no wording of the demo task fits the question {question!r}")
