"""JSON, read strictly: as files hold it, and as the text of a column."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_DEPTH = 100
"""Deepest nesting of lists and objects in a row; what reads them later is recursive."""


class BrokenJSONError(ValueError):
    """Text is not valid JSON, or cannot be used; the message is the reason alone.

    Attributes:
        line: Line of the text where that shows, counted from 0.
    """

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason)
        self.line = line


def parse_json(text: str) -> Any:
    """Parse JSON; an object that has a key twice is refused, since one of the values would be lost.

    Raises:
        BrokenJSONError: It is broken, or nested too deeply.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise BrokenJSONError(error.msg, error.lineno - 1) from error
    except RecursionError:
        raise BrokenJSONError(_TOO_DEEP) from None
    except ValueError as error:  # a key that occurs twice, or a number of thousands of digits
        raise BrokenJSONError(str(error)) from error


def require_shallow(value: Any, depth: int = 0) -> None:
    """Refuse a row that is nested too deeply, with a :class:`BrokenJSONError`."""
    if depth > MAX_DEPTH:
        raise BrokenJSONError(_TOO_DEEP)
    for inner in value.values() if type(value) is dict else value if type(value) is list else ():
        if type(inner) is dict or type(inner) is list:
            require_shallow(inner, depth + 1)


def parse_shallow(text: str) -> Any:
    """Parse the JSON text of a list or an object, and refuse what :func:`require_shallow` refuses.

    A byte order mark before it is skipped, and text that was encoded as JSON several times is decoded as often.

    Raises:
        BrokenJSONError: It is broken, or nested too deeply.
    """
    value: Any = text
    while isinstance(value, str):  # each time it is shorter
        value = parse_json(value.lstrip("\ufeff \t\r\n"))
    require_shallow(value)
    return value


def read_json(text: str, name: str) -> Any:
    """Parse the JSON text of a column; ``name`` is its path in the row, for errors."""
    try:
        return parse_shallow(text)
    except BrokenJSONError as error:
        raise ValueError(f"{name} is text that is broken JSON ({error}); fix it with a `transform`") from error


def read_list(value: Any, name: str) -> Sequence[Any]:
    """A list, or its JSON text, as CSV files and many tables have it; ``name`` is its path in the row, for errors."""
    if isinstance(value, str) and _MAY_BE_LIST.match(value):
        value = read_json(value, name)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{name} is {type(value).__name__}, not a list; convert it with a `transform`")
    return value


def parse_messages(value: Any, name: str) -> Any:
    """Parse messages that a column holds as JSON text, or as one list per key; return anything else as it is.

    A text is taken for messages only if all of it is a JSON list of objects that have a role and a content, or one such
    object, each of which may be JSON text itself; an answer that merely begins with a bracket stays text.

    Raises:
        ValueError: The text is such a list as Python prints it, which is not JSON.
    """
    if isinstance(value, Mapping):
        return _transposed(value)
    if not isinstance(value, str):
        return value
    if _PRINTED.match(value):
        raise ValueError(
            f"{name} is a list of messages as Python prints it, not JSON; write it with json.dumps, or save the rows "
            "as JSON lines or parquet"
        )
    if not _MAY_BE_MESSAGES.match(value):
        return value
    try:
        parsed = read_json(value, name)
        if not isinstance(parsed, list):
            return _transposed(parsed) if is_message(parsed) else value
        turns = [read_json(turn, name) if isinstance(turn, str) else turn for turn in parsed]
    except ValueError:
        return value
    return turns if turns and all(map(is_message, turns)) else value


def parse_content_parts(content: Any) -> Any:
    """Parse content parts that a message holds as JSON text; return anything else as it is.

    A text is taken for parts only if all of it is a JSON list of text and image parts: other JSON is an answer.
    """
    if not isinstance(content, str) or not _MAY_BE_MESSAGES.match(content):
        return content
    try:
        parsed = read_json(content, "content")
    except ValueError:
        return content
    if not isinstance(parsed, list):
        return content
    for part in parsed:
        kind = part.get("type") if isinstance(part, Mapping) else None
        is_text = kind in TEXT_PARTS and isinstance(part.get("text"), str)
        is_image = kind in _IMAGES and part.keys() <= _IMAGE_KEYS
        if not (is_text or is_image):
            return content
    return parsed


TEXT_PARTS = ("text", "input_text", "output_text")
"""Kinds of content parts that are text."""

_IMAGES = ("image", "image_url", "input_image")
_IMAGE_KEYS = {"type", "text", "image", "image_url", "url", "path", "base64", "source", "detail"}


def is_message(value: Any) -> bool:
    """True if a value looks like a message: an object with a role, and with a content or calls."""
    return isinstance(value, Mapping) and bool(value.keys() & _ROLE_KEYS) and bool(value.keys() & _CONTENT_KEYS)


_ROLE_KEYS = {"role", "from"}
_CONTENT_KEYS = {"content", "value", "tool_calls", "function_call"}
_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep, as no row of text is"
_WRAPPED = r'(?:[\s\ufeff"\\]|(?<=\\)(?:[nrt]|ufeff))*'  # what JSON text has around it that is JSON text again
_MAY_BE_LIST = re.compile(rf"{_WRAPPED}\[")
_MAY_BE_MESSAGES = re.compile(rf'{_WRAPPED}(\[{_WRAPPED})?\{{\s*(\\+[nrt]\s*)*\\*"')
_PRINTED = re.compile(r"[\s\ufeff]*\[\s*\{\s*'(role|from|content|value)'\s*:.*\}\s*\]\s*$", re.DOTALL)


def _transposed(value: Mapping[str, Any]) -> Any:
    """Turns of ``{"from": [...], "value": [...]}``: so ``datasets`` gives a sequence of objects."""
    if not is_message(value) or not all(isinstance(column, list) for column in value.values()):
        return value
    if len({len(column) for column in value.values()}) > 1:
        return value
    return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
