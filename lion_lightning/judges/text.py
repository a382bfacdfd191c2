"""How a prompt is put into words for a judge."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lion_lightning.cache import hash_json
from lion_lightning.types import Prompt


def conversation(prompt: Prompt) -> str:
    """What was asked: the text alone where it is a single turn, else all turns, each under its role.

    Args:
        prompt: What was asked.
    """
    if len(prompt.messages) < 2:
        return prompt.question
    return "\n\n".join(f"{turn['role'].upper()}: {_said(turn)}" for turn in prompt.messages)


def _said(turn: Mapping[str, Any]) -> str:
    """What a turn says, and what tools it calls."""
    calls = turn.get("tool_calls")
    return f"{turn['content']}\n{json.dumps(calls, ensure_ascii=False)}".lstrip() if calls else str(turn["content"])


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


def build_question(template: str, prompt: Prompt, answers: Mapping[str, str], words: Mapping[str, str]) -> str:
    """What a judge is asked about answers, none of which can pretend to be a part of the question.

    Prompt and answers stand between tags with a code that is in none of them, so that no text ends itself. The code
    follows from the texts: the same question is asked in the same words, and its reply found again.

    Args:
        template: Text with ``{field}`` where a field goes.
        prompt: What was asked, for ``{prompt}``.
        answers: Text of each field that holds an answer.
        words: Of each other field.
    """
    turns = [(str(turn["role"]), _said(turn)) for turn in prompt.messages]
    turns = turns if len(turns) > 1 else [("user", prompt.question)]
    code = _code([*(text for _, text in turns), *answers.values()])
    asked = "\n".join(_tagged(role, text, code) for role, text in turns)
    return fill(
        template, {"prompt": asked, **{name: _tagged("answer", text, code) for name, text in answers.items()}, **words}
    )


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Put fields in their places, in one pass: braces in an answer are text, and never a place.

    Args:
        template: Text with ``{field}`` where a field goes; other braces stay.
        fields: Text of each field.
    """
    places = "|".join(map(re.escape, fields))
    return re.sub(rf"\{{({places})\}}", lambda place: fields[place[1]], template)


def broken(text: str, tokens: Iterable[str]) -> str:
    """A text that a tokenizer reads no special token in: a space parts what would be one.

    Args:
        text: What somebody wrote.
        tokens: The tokenizer's special tokens.
    """
    for token in tokens:
        text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text


_TURNS = re.compile(
    r"<(?=\|[^<>|\n]{1,40}\|>|\uff5c[^<>\uff5c\n]{1,40}\uff5c>|/?s>|(?:start|end)_of_turn>|(?:bos|eos|pad|unk)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT)\])"
)
"""The first character of what ChatML, Llama, Mistral, Gemma, DeepSeek and their like write between turns."""


def _tagged(name: str, text: str, code: str) -> str:
    parted = _TURNS.sub(r"\g<0> ", text)  # the server's tokenizer is not known
    return f"<{name} {code}>\n{parted}\n</{name} {code}>"


def _code(texts: Iterable[str]) -> str:
    """Sixteen hexadecimal digits that are in none of the texts."""
    key = json.dumps(list(texts))
    while True:
        code = hash_json(key)[:16]
        if code not in key:
            return code
        key += code
