"""Labels of answers: names of their columns, and values that mean yes or no: booleans, numbers or words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

# fmt: off
LABELS = (
    "label", "labels", "kto_label", "kto_tag", "chosen_label", "answer_label", "response_label", "human_label",
    "user_label", "preference_label", "feedback_label", "feedback", "preference", "desirable", "is_desirable", "good",
    "is_good", "thumbs", "thumbs_up", "liked", "is_liked", "upvoted", "vote", "verdict", "judgement", "judgment",
    "correct", "is_correct", "accepted", "is_accepted", "acceptable", "is_acceptable", "approved", "is_approved",
    "preferred", "is_preferred", "is_chosen", "verified", "is_verified", "valid", "is_valid", "safe", "is_safe",
    "helpful", "is_helpful", "passed", "thumb", "reaction", "user_feedback", "human_feedback",
)
"""Names of columns that say of an answer whether it is wanted."""

FAULTS = (
    "bad", "is_bad", "undesirable", "is_undesirable", "thumbs_down", "dislike", "disliked", "downvoted", "wrong",
    "is_wrong", "incorrect", "is_incorrect", "is_rejected", "unsafe", "is_unsafe", "harmful", "is_harmful", "toxic",
    "is_toxic", "invalid", "is_invalid", "failed",
)
"""Names of columns whose yes says that an answer is not wanted."""

RATINGS = ("rating", "ratings", "quality", "grade", "grades", "helpfulness", "satisfaction", "usefulness", "evaluation")
"""Names of columns that grade an answer. Their numbers have no scale that is known; their words are as of labels."""

_YES = (
    "true", "yes", "y", "1", "1.0", "+1", "good", "great", "best", "better", "like", "liked", "upvote", "upvoted", "up",
    "thumbs up", "thumb up", "thumbsup", "👍", "✓", "✔", "✅", "positive", "pos", "chosen", "preferred", "accept",
    "accepted", "acceptable", "approve", "approved", "desirable", "desired", "wanted", "correct", "right", "pass",
    "passed", "ok", "okay", "valid", "verified", "safe", "harmless", "helpful", "relevant", "accurate", "win",
    "winner",
)
_NO = (
    "false", "no", "n", "0", "0.0", "-1", "-1.0", "bad", "worse", "worst", "poor", "terrible", "dislike", "disliked",
    "downvote", "downvoted", "down", "thumbs down", "thumb down", "thumbsdown", "👎", "✗", "✘", "❌", "negative", "neg",
    "rejected", "reject", "dispreferred", "unpreferred", "disapprove", "disapproved", "declined", "denied",
    "unaccepted", "unacceptable", "undesirable", "undesired", "unwanted", "incorrect", "wrong", "fail", "failed",
    "failure", "invalid", "unverified", "unsafe", "harmful", "toxic", "unhelpful", "lose", "loser", "lost",
)
_GRADES = (
    "very low", "low", "lower", "lowest", "medium", "middle", "middling", "moderate", "average", "fair", "mediocre",
    "so so", "high", "higher", "highest", "very high", "weak", "strong", "excellent", "very good", "very bad",
    "very poor", "neutral", "mixed", "unsure", "partial", "partially correct", "partly", "unclear", "meh",
)
# fmt: on
_SKIN = re.compile("[\U0001f3fb-\U0001f3ff]")  # colours of a thumb
_DENIAL = re.compile(r"(?:not|non) ?|no (?=[a-z])|un|dis|in")  # before a yes: "not good", "non-preferred", "unchosen"
_JUDGED = re.compile(r" (?:answer|response|reply|completion|output|quality|example|sample|one)s?$")  # "bad answer"
_LONGEST_WORD = 99
_WORDS = dict.fromkeys(_YES, True) | dict.fromkeys(_NO, False)


def is_yes(value: Any) -> bool:
    """Whether all values are yes, or 1."""
    return all(_truth(one) is True for one in leaves(value))


def has_yes(value: Any) -> bool:
    """Whether any value is yes, or 1."""
    return any(_truth(one) is True for one in leaves(value))


def has_no(value: Any) -> bool:
    """Whether any value is no, or 0 or less."""
    return any(_truth(one) is False for one in leaves(value))


def has_no_word(value: Any) -> bool:
    """Whether any value is no in words; numbers are ignored."""
    return any(_truth(one) is False for one in leaves(value) if isinstance(one, str) and not _is_number(one))


def has_grade(value: Any) -> bool:
    """Whether any value is a grade in words that is neither yes nor no: ``low``, ``medium quality``."""
    return any(_word(one) in _GRADES for one in leaves(value) if isinstance(one, str) and len(one) <= _LONGEST_WORD)


def leaves(value: Any) -> Iterator[Any]:
    """Values in nested lists and mappings."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


def _truth(value: Any) -> bool | None:
    """True for yes or 1, False for no or 0 and less, else None; CSV files have them as text."""
    if isinstance(value, str):
        if len(value) > _LONGEST_WORD:
            return None
        words = _word(value)
        denied = _DENIAL.match(words)
        return _WORDS.get(words, False if denied and words[denied.end() :] in _YES else None)
    if isinstance(value, Real):
        return True if value == 1 else False if value <= 0 else None
    return None


def _word(value: str) -> str:
    """A label in small letters, without what it is a label of."""
    words = re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", _SKIN.sub("", value.strip().strip(".!").lower()))
    return _JUDGED.sub("", words)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
