"""Constraints on the form of an answer: its case, its format, its beginning and end."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lion_lightning.judges.verifiers.constraints.counting import count_phrase
from lion_lightning.processes.limited_checks import refuse_constant, without_fence


def one_option(answer: str, options: Sequence[str]) -> bool:
    """Check that exactly one option occurs, between word boundaries; one within a longer one does not count."""
    found = [option for option in dict.fromkeys(options) if count_phrase(answer, option, ignore_case=False)]
    # "My answer is yes" may be part of another option: all that were found have to be parts of the longest one.
    longest = max(found, key=len, default="")
    return bool(found) and all(count_phrase(longest, option, ignore_case=False) for option in found)


def is_json(answer: str) -> bool:
    """Check that all of the answer is JSON, in a code fence or not."""
    try:
        # Numbers stay text: Python refuses integers of over 4,300 digits.
        json.loads(without_fence(answer), parse_int=str, parse_float=str, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return False
    return True


def repeats_prompt(answer: str, text: str) -> bool:
    """Check that the answer begins with a text, ignoring case, and goes on after it."""
    begun, wanted = answer.strip().lower(), text.strip().lower()
    return begun.startswith(wanted) and len(begun) > len(wanted)


def ends_with(answer: str, phrase: str) -> bool:
    """Check that the answer ends with a phrase, ignoring case and quotation marks around the answer."""
    text, wanted = answer.strip().lower(), phrase.strip().lower()
    return text.endswith(wanted) or text.strip('"').rstrip().endswith(wanted)  # a phrase may end with a mark itself


def all_capitals(answer: str) -> bool:
    """Check that there are letters, and none is small. The language is not checked."""
    return answer.isupper()


def all_small(answer: str) -> bool:
    """Check that there are letters, and none is a capital. The language is not checked."""
    return answer.islower()


def no_commas(answer: str) -> bool:
    """Check that there is no comma of any script."""
    return not any(comma in answer for comma in ",，،、")  # noqa: RUF001


def quoted(answer: str) -> bool:
    """Check that the answer stands in double quotation marks."""
    text = answer.strip()
    return len(text) > 2 and text[0] == text[-1] == '"'
