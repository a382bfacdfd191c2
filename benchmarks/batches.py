"""Token ids to train on: random, with the lengths of real documents, the same for every side."""

from __future__ import annotations

import json
import random
from bisect import bisect
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate, combinations, islice
from pathlib import Path
from typing import Any, NamedTuple

VOCABULARY = 49152


class Item(NamedTuple):
    """A prompt and the answers to learn from: one for a document, chosen and rejected for a pair, the best first.

    Attributes:
        prompt: Its tokens.
        answers: Their tokens.
        labels: Whether each answer is desirable, or right, where that is what is learned from.
        mismatched: An answer to another prompt, for KTO's estimate of the divergence.
    """

    prompt: list[int]
    answers: tuple[list[int], ...]
    labels: tuple[bool, ...] = ()
    mismatched: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Tokens, the prompt once."""
        return len(self.prompt) + sum(map(len, self.answers))

    @property
    def targets(self) -> int:
        """Supervised tokens."""
        return sum(map(len, self.answers))

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Each answer over each that follows it."""
        return tuple(combinations(range(len(self.answers)), 2))

    def taken_apart(self) -> list[Item]:
        """Its pairs, each with the prompt."""
        return [Item(self.prompt, (self.answers[one], self.answers[other])) for one, other in self.pairs]

    def one_by_one(self) -> list[Item]:
        """Its answers with their labels, each with the prompt."""
        return [Item(self.prompt, (answer,), (label,)) for answer, label in zip(self.answers, self.labels, strict=True)]


@cache
def real_lengths(kind: str) -> list[list[int]]:
    """Lengths of ``documents`` (GSM8K and Self-Instruct, in equal shares) or ``pairs`` (GSM8K solutions).

    Args:
        kind: Which.
    """
    found: dict[str, list[list[int]]] = json.loads(Path(__file__).with_name("lengths.json").read_text(encoding="ascii"))
    return found[kind]


def documents(steps: int, tokens: int, by_length: bool = False, first: Sequence[int] = ()) -> list[list[Item]]:
    """Documents of each step: as many of them in turn as fit into ``tokens``.

    Args:
        steps: How many.
        tokens: The most in a step.
        by_length: Let the documents of steps swap places, so that a step's are of like lengths.
        first: The most in each of the first steps, which do not count.
    """
    draw = random.Random(0)
    lengths = iter(real_lengths("documents") * 100)
    found: list[list[Item]] = [[]]
    while len(found) <= steps:
        item = _item(draw, next(lengths))
        most = first[len(found) - 1] if len(found) <= len(first) else tokens
        if item.length <= most:
            if sum(other.length for other in found[-1]) + item.length > most:
                found.append([])
            found[-1].append(item)
    return _by_length(found[:steps]) if by_length else found[:steps]


def gsm8k_pairs(steps: int, pairs: int) -> list[list[Item]]:
    """Preference pairs of each step, with the lengths of right and wrong solutions.

    Args:
        steps: How many.
        pairs: In each.
    """
    draw = random.Random(0)
    lengths = iter(real_lengths("pairs") * 100)
    return [[_item(draw, next(lengths)) for _ in range(pairs)] for _ in range(steps)]


def chat_pairs(steps: int, pairs: int) -> list[list[Item]]:
    """Preference pairs of each step: prompts of 30 to 300 tokens, answers of 100 to 700, all equally likely.

    Args:
        steps: How many.
        pairs: In each.
    """
    draw = random.Random(0)

    def lengths() -> list[int]:
        return [draw.randint(30, 300), draw.randint(100, 700), draw.randint(100, 700)]

    return [[_item(draw, lengths()) for _ in range(pairs)] for _ in range(steps)]


def ranked(steps: int, trees: int, answers: int, lengths: Sequence[Sequence[int]]) -> list[list[Item]]:
    """Prompts with several answers each, all lengths equally likely; the first step's are the shortest.

    Args:
        steps: How many; the first does not count, and takes less time so.
        trees: Prompts in each.
        answers: Of each prompt.
        lengths: The least and the most tokens of a prompt, and of an answer.
    """
    draw = random.Random(0)
    found = []
    for step in range(steps):
        (prompt, longest_prompt), (answer, longest_answer) = lengths
        if step == 0:
            longest_prompt, longest_answer = prompt, answer
        sizes = [
            [draw.randint(prompt, longest_prompt), *(draw.randint(answer, longest_answer) for _ in range(answers))]
            for _ in range(trees)
        ]
        found.append([_item(draw, each) for each in sizes])
    return found


def groups(steps: int, trees: int, answers: int, lengths: Sequence[Sequence[int]]) -> list[list[Item]]:
    """Trees as those of ``ranked``, with half of each one's answers right.

    Args:
        steps: As for ``ranked``.
        trees: As for ``ranked``.
        answers: Of each prompt.
        lengths: As for ``ranked``.
    """
    draw = random.Random(0)

    def labels() -> tuple[bool, ...]:
        return tuple(draw.sample([True, False] * (answers // 2) + [True] * (answers % 2), answers))

    return [[item._replace(labels=labels()) for item in step] for step in ranked(steps, trees, answers, lengths)]


def labeled(steps: int, answers: int, lengths: Sequence[Sequence[int]]) -> list[list[Item]]:
    """Prompts with an answer each, every other one desirable, with the answer to the prompt before as a mismatch.

    Args:
        steps: As for ``ranked``.
        answers: In each step, at least two.
        lengths: As for ``ranked``.
    """
    found = []
    for step in ranked(steps, answers, 1, lengths):
        before = [step[-1], *step[:-1]]
        found.append(
            [
                item._replace(labels=(number % 2 == 0,), mismatched=tuple(other.answers[0]))
                for number, (item, other) in enumerate(zip(step, before, strict=True))
            ]
        )
    return found


def _by_length(steps: list[list[Item]]) -> list[list[Item]]:
    """The documents of all steps, those of like lengths together; each step keeps its size."""
    order = list(range(len(steps)))
    random.Random(0).shuffle(order)
    ends = list(accumulate(sum(item.length for item in steps[number]) for number in order))
    found: list[list[Item]] = [[] for _ in steps]
    done = 0
    for item in sorted((item for step in steps for item in step), key=lambda item: item.length):
        found[order[bisect(ends, done)]].append(item)
        done += item.length
    return found


def _item(draw: random.Random, lengths: list[int]) -> Item:
    def tokens(count: int) -> list[int]:
        return draw.choices(range(3, VOCABULARY), k=count)

    return Item(tokens(lengths[0]), tuple(map(tokens, lengths[1:])))


def flat(steps: list[list[Item]]) -> Iterator[Item]:
    """All items in turn.

    Args:
        steps: Lists of them.
    """
    return (item for step in steps for item in step)


def steps_of(job: dict[str, Any]) -> list[list[Item]]:
    """What a job trains on, a list a micro-batch.

    Args:
        job: Its ``data``, ``steps`` (micro-batches), and ``tokens`` or ``pairs`` in each; for trees the number of
            ``trees`` and ``answers`` a turn, their ``lengths``, and whether they are taken ``apart``: ranked ones into
            pairs, groups into their answers.
    """
    if job["data"] in ("ranked", "labeled", "groups"):
        return _parts_of_turns(job)
    if job["data"] == "documents":
        return documents(job["steps"], job["tokens"], job.get("by_length", False), job.get("first", ()))
    return {"chat": chat_pairs, "gsm8k": gsm8k_pairs}[job["data"]](job["steps"], job["pairs"])


def _parts_of_turns(job: dict[str, Any]) -> list[list[Item]]:
    """Turns of trees or of their parts, in as many micro-batches as ``accumulate`` says."""
    turns, trees, lengths = job["steps"] // job["accumulate"], job["trees"], job["lengths"]
    if job["data"] == "labeled":
        steps = labeled(turns, trees, lengths)
    else:
        made = {"ranked": ranked, "groups": groups}[job["data"]]
        steps = made(turns, trees, job["answers"], lengths)
    if job.get("apart"):
        parts = {"ranked": Item.taken_apart, "groups": Item.one_by_one}[job["data"]]
        steps = [[part for tree in step for part in parts(tree)] for step in steps]
    return [part for step in steps for part in grouped(step, len(step) // job["accumulate"])]


def grouped(parts: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Lists of so many parts.

    Args:
        parts: In their order.
        size: Of a list.
    """
    rest = iter(parts)
    return iter(lambda: list(islice(rest, size)), [])
