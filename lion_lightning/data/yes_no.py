"""Whether a value says yes or no: as a truth value, a number, or one of the words that labels are written in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

# fmt: off
_YES = (
    "true", "yes", "y", "1", "1.0", "+1", "good", "great", "best", "better", "like", "liked", "upvote", "upvoted", "up",
    "thumbs up", "thumb up", "thumbsup", "👍", "✓", "✔", "✅", "positive", "pos", "chosen", "preferred", "accept",
    "accepted", "acceptable", "approve", "approved", "desirable", "desired", "wanted", "correct", "right", "pass",
    "passed", "ok", "okay", "valid", "verified", "safe", "harmless", "helpful", "win", "winner",
)
_NO = (
    "false", "no", "n", "0", "0.0", "-1", "-1.0", "bad", "worse", "worst", "poor", "terrible", "dislike", "disliked",
    "downvote", "downvoted", "down", "thumbs down", "thumb down", "thumbsdown", "👎", "✗", "✘", "❌", "negative", "neg",
    "rejected", "reject", "dispreferred", "unpreferred", "disapprove", "disapproved", "declined", "denied",
    "unaccepted", "unacceptable", "undesirable", "undesired", "unwanted", "incorrect", "wrong", "fail", "failed",
    "failure", "invalid", "unverified", "unsafe", "harmful", "toxic", "unhelpful", "lose", "loser", "lost",
)
# fmt: on
_WORDS = dict.fromkeys(_YES, True) | dict.fromkeys(_NO, False)


def is_yes(value: Any) -> bool:
    """Whether a value says yes, or 1, throughout."""
    return all(_truth(one) is True for one in leaves(value))


def has_yes(value: Any) -> bool:
    """Whether a value says yes, or 1, anywhere."""
    return any(_truth(one) is True for one in leaves(value))


def has_no(value: Any) -> bool:
    """Whether a value says no, or 0 or less, anywhere."""
    return any(_truth(one) is False for one in leaves(value))


def leaves(value: Any) -> Iterator[Any]:
    """What stands in a value, without the lists and mappings that hold it."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


def _truth(value: Any) -> bool | None:
    """Whether a value is a yes (or 1), a no (or 0 and less), or neither; CSV files have them as text."""
    if isinstance(value, str):
        words = re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", value.strip().strip(".!").lower())
        return False if words.startswith("not ") and words.removeprefix("not ") in _YES else _WORDS.get(words)
    if isinstance(value, Real):
        return True if value == 1 else False if value <= 0 else None
    return None
