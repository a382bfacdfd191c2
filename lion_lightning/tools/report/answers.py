"""Answers of an evaluation, and the choice of those that are shown side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from lion_lightning.tools.report.files.shapes import ANSWER, FIX, fitted

LONGEST = 1_000
"""Characters of a question or an answer that are shown."""

EACH = 3
"""Prompts that are shown of each group."""


class Scored(NamedTuple):
    """An answer to a prompt of an evaluation.

    Attributes:
        question: The prompt's last turn, the first :data:`LONGEST` characters.
        answer: The answer, likewise.
        score: Its score.
        kind: Category of the prompt; empty without any.
        parts: Scores of the parts of a combined judge, by name.
    """

    question: str
    answer: str
    score: float
    kind: str = ""
    parts: Mapping[str, float] = {}


Key = tuple[str, int]
"""A question, and how many prompts with the same question came before it."""


def read_answers(path: Path, by: str | None) -> list[Scored]:
    """Read ``scored.jsonl`` of an evaluation; empty if there is none.

    Args:
        path: The file.
        by: Column of the rows with the category; None for no categories.

    Raises:
        ValueError: The file is damaged.
    """
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: damaged, or not an answer with its score; {FIX}") from error
        row = fitted(content, ANSWER, f"{path}:{number}")
        kind = "" if by is None else str(row.get("row", {}).get(by, ""))
        found.append(
            Scored(row["question"][:LONGEST], row["answer"][:LONGEST], row["score"], kind, row.get("parts", {}))
        )
    return found


def by_prompt(answers: Sequence[Scored]) -> dict[Key, Scored]:
    """Answers by their prompt, the same for two stages that answered the same prompts."""
    seen: dict[str, int] = {}
    found = {}
    for one in answers:
        seen[one.question] = number = seen.get(one.question, -1) + 1
        found[one.question, number] = one
    return found


class Group(NamedTuple):
    """Prompts with the same outcome, of which some are shown.

    Attributes:
        name: What they have in common.
        size: How many there are.
        shown: The answers to those that are shown, each with one of every stage.
    """

    name: str
    size: int
    shown: list[list[Scored]]


def side_by_side(stages: Sequence[Sequence[Scored]], each: int = EACH) -> list[Group]:
    """Choose prompts whose answers are shown: some that got better, some that got worse, some that stayed.

    Compared are the scores of the first and the last stage. Within a group the order is that of a hash of the
    questions: it knows nothing of the answers, and is the same in every report. A single stage has the groups at or
    above its mean score, and below.

    Args:
        stages: Answers of each stage, in order.
        each: How many of a group to show.
    """
    found = [by_prompt(answers) for answers in stages]
    common = [key for key in found[0] if all(key in other for other in found[1:])]
    common.sort(key=lambda key: blake2b(f"{key[0]}\0{key[1]}".encode("utf-8", "replace")).digest())
    if len(stages) == 1:
        mean = fmean(one.score for one in stages[0])
        groups: dict[str, list[Key]] = {"score at or above the mean": [], "score below the mean": []}
        for key in common:
            groups["score at or above the mean" if found[0][key].score >= mean else "score below the mean"].append(key)
    else:
        groups = {"got better": [], "got worse": [], "stayed the same": []}
        for key in common:
            change = found[-1][key].score - found[0][key].score
            groups["got better" if change > 0 else "got worse" if change < 0 else "stayed the same"].append(key)
    return [
        Group(name, len(keys), [[answers[key] for answers in found] for key in keys[:each]])
        for name, keys in groups.items()
    ]
