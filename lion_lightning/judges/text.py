"""Text of judges: questions to a language model, ratings and verdicts in its replies, escaped special tokens."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lion_lightning.cache import hash_json
from lion_lightning.endpoint.replies import Reply
from lion_lightning.types import Prompt

# No pattern crosses a line end: searching a reply of newlines would otherwise take quadratic time. The characters
# before a number may not end in a part of it, such as the point of ".5" or any kind of minus.
_RATING = re.compile(
    r"^[^\w\n]*rating[^\w\n]*?(?<![.,\u2010-\u2015\u2212-])(-?\d+(?:\.\d+)?)(?!\s*%)[^\w\n]*(?:/\s*(\d+)[^\w\n]*)?$",
    re.IGNORECASE | re.MULTILINE,
)
_NOT_RATED = re.compile(r"^[^\w\n]*rating[^\w\n]*n[ \t]*/[ \t]*a[^\w\n]*$", re.IGNORECASE | re.MULTILINE)
_VERDICT = re.compile(r"^[^\w\n]*verdict[^\w\n]*?(a|b|tie)[^\w\n]*$", re.IGNORECASE | re.MULTILINE)
_PREFERENCE = {"a": 1.0, "b": -1.0, "tie": 0.0}


def conversation(prompt: Prompt) -> str:
    """A prompt as plain text: a single turn as it is, several turns each after its role."""
    if len(prompt.messages) < 2:
        return prompt.question
    return "\n\n".join(f"{turn['role'].upper()}: {_turn_text(turn)}" for turn in prompt.messages)


def _turn_text(turn: Mapping[str, Any]) -> str:
    """Content and tool calls of a turn."""
    calls = turn.get("tool_calls")
    return f"{turn['content']}\n{json.dumps(calls, ensure_ascii=False)}".lstrip() if calls else str(turn["content"])


def build_question(template: str, prompt: Prompt, answers: Mapping[str, str], words: Mapping[str, str]) -> str:
    """Fill a judge's template so that no answer can pass for a part of the question.

    Prompt and answers are enclosed in tags with a code that none of them contains, so no text can close its own tag.
    The code is a hash of the texts: the same question has the same text, so its reply is found in the cache.

    Args:
        template: Text with placeholders ``{field}``.
        prompt: The prompt, for ``{prompt}``.
        answers: The answer for each field.
        words: The text for each other field.
    """
    turns = [("user", prompt.question)]
    if len(prompt.messages) > 1:
        turns = [(str(turn["role"]), _turn_text(turn)) for turn in prompt.messages]
    texts = json.dumps([*(text for _, text in turns), *answers.values()])
    code = hash_json(texts)[:16]
    while code in texts:  # the next code depends on the texts only, too
        texts += code
        code = hash_json(texts)[:16]

    fields = {"prompt": "\n".join(_tagged(role, text, code) for role, text in turns), **words}
    for name, text in answers.items():
        fields[name] = _tagged("answer", text, code)
    # In one pass, so that braces in an answer are never taken for a placeholder.
    names = "|".join(map(re.escape, fields))
    return re.sub(rf"\{{({names})\}}", lambda placeholder: fields[placeholder[1]], template)


def escape_special_tokens(text: str, tokens: Iterable[str]) -> str:
    """Insert a space into special tokens, so that the tokenizer reads them as text."""
    for token in tokens:
        text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text


_TURNS = re.compile(
    r"<(?=\|[^<>|\n]{1,40}\|>|\uff5c[^<>\uff5c\n]{1,40}\uff5c>|/?s>|(?:start|end)_of_turn>|(?:bos|eos|pad|unk)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT)\])"
)
"""First character of the turn markers of ChatML, Llama, Mistral, Gemma, DeepSeek and similar templates."""


def _tagged(name: str, text: str, code: str) -> str:
    escaped = _TURNS.sub(r"\g<0> ", text)  # the server's tokenizer and its special tokens are unknown
    return f"<{name} {code}>\n{escaped}\n</{name} {code}>"


def complete_text(choice: Reply) -> str:
    """The text of a reply; if it was truncated, without its last line, where a rating of 10 may end after the 1."""
    content = choice["message"]["content"]
    text = "" if content.absent else content.text()
    return text.rpartition("\n")[0] if choice["finish_reason"].value == "length" else text


def last_rating(reply: str, lowest: float, highest: float, may_not_apply: bool = False) -> float | None:
    """The number after the last ``Rating:`` in a reply; None without one, or on another scale.

    Where the rating may not apply, ``Rating: N/A`` behind all numbers is NaN.
    """
    found = list(_RATING.finditer(reply))
    if may_not_apply and _NOT_RATED.search(reply, found[-1].end() if found else 0):
        return math.nan
    rating, scale = found[-1].groups(default="") if found else ("nan", "")
    valid = lowest <= float(rating) <= highest and (not scale or float(scale) == highest)  # "4 / 5" needs highest = 5
    return float(rating) if valid else None


def last_verdict(reply: str) -> float | None:
    """1 for the first answer, -1 for the second, 0 for a tie, by the last ``Verdict:``; None without one."""
    found = _VERDICT.findall(reply)
    return _PREFERENCE[found[-1].lower()] if found else None
