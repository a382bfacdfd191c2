"""From comparisons of two answers to scores of all."""

from __future__ import annotations

from collections.abc import Sequence


def distinct(answers: Sequence[str]) -> tuple[list[str], list[int]]:
    """Each text once, and the place of every answer among them: equal answers are compared once, and tie exactly.

    Args:
        answers: Texts, some of them equal.
    """
    texts = list(dict.fromkeys(answers))
    place = {text: index for index, text in enumerate(texts)}
    return texts, [place[answer] for answer in answers]


def standings(margins: Sequence[Sequence[float]], places: Sequence[int]) -> list[float]:
    """Sum of each answer's margins over all answers.

    Args:
        margins: By how much a text is better than another, ``margins[a][b] == -margins[b][a]``.
        places: Text of each answer, as :func:`distinct` gives it.
    """
    return [sum(margins[place][other] for other in places) for place in places]
