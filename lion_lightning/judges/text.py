"""How a prompt is put into words for a judge."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from lion_lightning.types import Prompt


def conversation(prompt: Prompt) -> str:
    """What was asked: the text alone where it is a single turn, else all turns, each under its role.

    Args:
        prompt: What was asked.
    """
    if len(prompt.messages) < 2:
        return prompt.question
    return "\n\n".join(f"{turn['role'].upper()}: {turn['content']}" for turn in prompt.messages)


def check_template(template: str, fields: Collection[str], owner: str) -> None:
    """See that a template has a place for each field.

    Args:
        template: Text with ``{field}`` where a field goes.
        fields: Names that must be there.
        owner: Whose template it is, for the message.

    Raises:
        ValueError: A field has no place.
    """
    missing = [field for field in fields if f"{{{field}}}" not in template]
    if missing:
        places = " and ".join(f"{{{field}}}" for field in missing)
        raise ValueError(f"{owner}: the template has no place for {places}; write it where the text shall stand")


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Put fields in their places, in one pass: braces in an answer are text, and never a place.

    Args:
        template: Text with ``{field}`` where a field goes; other braces stay.
        fields: Text of each field.
    """
    places = "|".join(map(re.escape, fields))
    return re.sub(rf"\{{({places})\}}", lambda place: fields[place[1]], template)
