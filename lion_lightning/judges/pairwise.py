"""Ratings and verdicts read from the replies of judges, and scores of all answers from comparisons of two."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lion_lightning.endpoint.replies import Reply

# Marks around words never reach over a line's end: a reply of nothing but line ends would take for ever to search.
# Nor do those before a number end in what is a part of it, such as the point of ".5", or a minus of whichever length.
_RATING = re.compile(
    r"^[^\w\n]*rating[^\w\n]*?(?<![.,\u2010-\u2015\u2212-])(-?\d+(?:\.\d+)?)(?!\s*%)[^\w\n]*(?:/\s*(\d+)[^\w\n]*)?$",
    re.IGNORECASE | re.MULTILINE,
)
_VERDICT = re.compile(r"^[^\w\n]*verdict[^\w\n]*?(a|b|tie)[^\w\n]*$", re.IGNORECASE | re.MULTILINE)
_WORTH = {"a": 1.0, "b": -1.0, "tie": 0.0}


def complete_text(choice: Reply) -> str:
    """The text of a reply; without its last line where the reply was cut off: of a 10 only the 1 may be there.

    Args:
        choice: One of the choices of a server's answer.
    """
    content = choice["message"]["content"]
    text = "" if content.absent else content.text()
    return text.rpartition("\n")[0] if choice["finish_reason"].value == "length" else text


def last_rating(reply: str, lowest: float, highest: float) -> float | None:
    """The number behind the last ``Rating:``; None without one, or with one of another scale.

    Args:
        reply: What was said.
        lowest: The lowest rating.
        highest: The highest.
    """
    found = _RATING.findall(reply)
    rating, of = found[-1] if found else ("nan", "")
    known = lowest <= float(rating) <= highest and (not of or float(of) == highest)
    return float(rating) if known else None  # of "4 / 5" where ten is the highest nobody knows the worth


def last_verdict(reply: str) -> float | None:
    """1 for the first, -1 for the second, 0 for a tie, as the last ``Verdict:`` has it; None without one.

    Args:
        reply: What was said.
    """
    found = _VERDICT.findall(reply)
    return _WORTH[found[-1].lower()] if found else None


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
