"""Constraints on the parts of an answer: paragraphs, sections, bullets, highlights, a title, a postscript."""

from __future__ import annotations

import re
from string import punctuation

_PLACEHOLDER = re.compile(r"\[[ \t]*[^\s\[\]][^\[\]\n]*\](?!\()")  # but not a markdown link
_HIGHLIGHT = re.compile(r"(?<!\*)(\*{1,3})(?![\s*])[^*\n]*(?<!\s)\1(?!\*)")
_BULLET = re.compile(r"\s*[*+-]\s+\S")
_MARKS = " \t#*_>"  # of markdown, before the words of a line
_PUNCTUATION = punctuation + "“”‘’«»…—–¿¡。！？，、"  # noqa: RUF001


def divided_paragraphs(answer: str, number: int) -> bool:
    """Check the number of paragraphs with dividers (``***`` or ``* * *`` on separate lines) between them.

    A divider before the first or after the last one does no harm; two with nothing between them do.
    """
    paragraphs = [""]
    for line in answer.splitlines():
        if "".join(line.split()) == "***":
            paragraphs.append("")
        else:
            paragraphs[-1] += line.strip()
    inner = paragraphs[1:-1]  # the first and the last are empty where a divider begins or ends the answer
    return all(inner) and sum(map(bool, paragraphs)) == number


def nth_paragraph_begins(answer: str, number: int, place: int, first_word: str) -> bool:
    """Check the number of paragraphs with blank lines between them, and the first word of one.

    Case and punctuation around the word are ignored.

    Args:
        answer: The answer.
        number: Number of paragraphs.
        place: Number of the paragraph in question, from 1.
        first_word: Its first word, or several.
    """
    paragraphs = [part for part in re.split(r"\n\s*\n", answer) if part.strip()]
    wanted = _bare(first_word)
    if len(paragraphs) != number or not 1 <= place <= number or not wanted:
        return False
    return _bare(paragraphs[place - 1], len(wanted)) == wanted


def _bare(text: str, count: int | None = None) -> list[str]:
    """The first words, without case and punctuation around them."""
    words = [word.strip(_PUNCTUATION).casefold() for word in text.split()]
    return list(filter(None, words))[:count]


def postscript(answer: str, marker: str) -> bool:
    """Check that a line begins with a marker such as ``P.S.``, ignoring case, and that something follows the marker."""
    lines = ["".join(line.lstrip(_MARKS).split()).casefold() for line in answer.splitlines()]
    wanted = "".join(marker.split()).casefold()
    for place, line in enumerate(lines):
        if line.startswith(wanted):
            return any(map(str.isalnum, line[len(wanted) :] + "".join(lines[place + 1 :])))
    return False


def placeholders(answer: str, number: int) -> bool:
    """Check for at least so many placeholders, such as ``[address]``."""
    return len(_PLACEHOLDER.findall(answer)) >= number


def bullets(answer: str, number: int) -> bool:
    """Check the number of lines that begin with ``*``, ``-`` or ``+`` and white space, dividers excluded."""
    lines = [line for line in answer.splitlines() if _BULLET.match(line)]
    return sum(len(set("".join(line.split()))) > 1 for line in lines) == number


def highlights(answer: str, number: int) -> bool:
    """Check for at least so many highlighted sections: ``*so*``, ``**so**`` or ``***so***``."""
    return len(_HIGHLIGHT.findall(answer)) >= number


def sections(answer: str, splitter: str, number: int) -> bool:
    """Check for at least so many lines that begin with a section's mark and its number, such as ``SECTION 1``."""
    splitter = splitter.strip()
    rests = []
    for line in answer.splitlines():
        begun = line.lstrip(_MARKS)
        if begun.startswith(splitter):
            rests.append(begun[len(splitter) :].lstrip())
    return sum(rest[:1].isdigit() for rest in rests) >= number


def title(answer: str) -> bool:
    """Check for a title in double angular brackets, ``<<so>>``, within a line."""
    for line in answer.splitlines():
        start, end = line.find("<<"), line.rfind(">>")
        if -1 < start < end and line[start:end].strip("<> \t"):
            return True
    return False


def two_responses(answer: str) -> bool:
    """Check for two different responses with ``******`` between them."""
    parts = [part.strip() for part in answer.split("******")]
    if not all(parts[1:-1]):
        return False
    responses = [part for part in parts if part]
    return len(responses) == 2 and responses[0] != responses[1]
