"""Columns that a form has not read: an error, a warning or a count, by the table in ``column_table``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lion_lightning.data.formats.column_table import (
    ANSWERS,
    HARMLESS,
    MEANINGS,
    PROMPTS,
    ROLES,
    Meaning,
    has_grade,
    is_yes,
    leaves,
)
from lion_lightning.data.reports.row_messages import add_message, add_warning

if TYPE_CHECKING:
    from lion_lightning.data.formats.columns import Fields

_MAX_PATTERN_NAME = 64  # characters of a name that is matched with patterns, whose time grows with it
_BY_NAME: dict[str, Meaning] = {}
for _meaning in MEANINGS:
    _BY_NAME |= dict.fromkeys(_meaning.names, _meaning)


def check_unused_columns(fields: Fields, form: str, only_prompt: bool = False) -> None:
    """Refuse a row if a column that changes its meaning was not read; count every other column that was not.

    Args:
        fields: The row, after a form has read it.
        form: That form, for errors.
        only_prompt: Whether only the prompt is wanted, so that columns of answers may remain.
    """
    for name in list(fields.unread):
        value = fields.peek(name)
        if is_empty(value):
            continue
        meaning = meaning_of(name) or meaning_of(fields.own(name)) or (_BY_NAME["image"] if _is_media(value) else None)
        may_repeat = meaning.is_text if meaning else name in ANSWERS
        if name in PROMPTS:
            _check_second_prompt(fields, name, form)
        elif may_repeat and _is_repeated(texts_in(value), fields):
            continue
        elif meaning is None or (only_prompt and not meaning.of_prompt):
            add_message("kept" if only_prompt else "unused", _printable_own(fields, name))
        else:
            _check_meaning(meaning, value, _printable_own(fields, name), form)


def _check_meaning(meaning: Meaning, value: Any, own: str, form: str) -> None:
    """Refuse a column that changes the meaning of the row; warn of grades, which do so only perhaps."""
    if meaning.is_lost(value):
        raise ValueError(
            f"the column {own!r} holds {meaning.what}, and {form} has no place for it; {meaning.fix}, or give the "
            f"source `ignore: [{own}]`"
        )
    if has_grade(value):
        add_warning(
            f"the column {own!r} grades in words, and all rows are trained alike: leave those that are not wanted "
            f"out with a `transform` that returns [], or give the source `ignore: [{own}]`"
        )
    elif not is_yes(value):
        add_message("unused", own)


def _printable_own(fields: Fields, name: str) -> str:
    """The row's own name of a column; pandas writes the index of a table, which counts, without a name."""
    own = printable(fields.own(name))
    if own:
        return own
    is_index = all(str(leaf).isdigit() for leaf in leaves(fields.peek(name)))
    return "index" if is_index else "a column without a name"


def require_prompt_kept(row: Mapping[str, Any], where: str) -> None:
    """Refuse a benchmark's question with a column that changes the prompt, since benchmarks ask texts alone.

    ``where`` is its file and line, for errors.
    """
    for name, value in row.items():
        meaning = meaning_of(name)
        if meaning is not None and meaning.of_prompt and not is_empty(value):
            raise ValueError(
                f"{where}: the column {printable(name)!r} holds {meaning.what}, and a benchmark's question has no "
                "place for it; take it out of the file"
            )


def printable(name: str) -> str:
    """The name of a column, on one line of at most 80 characters."""
    return (name if name.isprintable() else ascii(name)[1:-1])[:80]


def is_harmless(name: str) -> bool:
    """True if a column of this name only describes a row."""
    plain = name.lower()
    return plain in HARMLESS or plain.endswith(("_id", "_ids", "-id"))


def is_empty(value: Any) -> bool:
    """True if a column holds nothing but nulls and white space."""
    return all(leaf is None or (isinstance(leaf, str) and not leaf.strip()) for leaf in leaves(value))


def may_be_prompt(name: str, value: Any) -> bool:
    """True if a column that no form reads may hold the prompt: it has text, and its name does not say what else it is.

    A long text is more than the name of a thing: an article may stand in a column that is called its source.
    """
    meaning, texts = meaning_of(name), list(texts_in(value))
    if meaning is not None and meaning.of_prompt and not meaning.is_text:
        return False  # it is refused by its name
    is_long = any(len(text) > 100 and len(text.split()) > 10 for text in texts)
    return is_long or (bool(texts) and not is_harmless(name))


@lru_cache(4096)
def meaning_of(name: str) -> Meaning | None:
    """Meaning of a column, told by its name; None if it changes nothing in the row."""
    for variant in name_variants(name):
        if variant in _BY_NAME:
            return _BY_NAME[variant]
    if len(name) > _MAX_PATTERN_NAME:
        return None
    return next((meaning for meaning in MEANINGS if re.fullmatch(meaning.more, name_variants(name)[1])), None)


@lru_cache(4096)
def name_variants(name: str) -> tuple[str, str]:
    """A name in small letters, and with its words joined by ``_``: ``isGood`` and ``is-good`` are ``is_good``."""
    name = name.strip()
    return name.lower(), re.sub(r"[\s-]+|(?<=[a-z])(?=[A-Z])", "_", name).lower()  # "CoT" is one word


def _check_second_prompt(fields: Fields, name: str, form: str) -> None:
    """Refuse a second prompt unless it repeats what was read, or holds all of the prompt that was read."""
    read = [other for other in fields if other not in fields.unread and other in PROMPTS]
    asked: list[str] = []
    for other in read:
        asked += _prompt_texts(fields.peek(other))
    second = list(_prompt_texts(fields.peek(name)))
    if not second or _is_repeated(second, fields) or (asked and all(text in "\n".join(second) for text in asked)):
        return
    own = printable(fields.own(name))
    if not any(map(fields.is_mapped, read)):
        raise ValueError(
            f"the column {own!r} asks something else than {form}, which is read; say with `columns` which of them is "
            f"the prompt, or give the source `ignore: [{own}]`"
        )
    add_message("unused", own)  # `columns` says which of them is the prompt


def _is_repeated(texts: Iterable[str], fields: Fields) -> bool:
    """True if there are texts, and all of them are parts of columns that were read."""
    read: list[str] = []
    for name in fields:
        if name not in fields.unread:
            read += texts_in(fields.peek(name))
    texts = list(texts)
    return bool(texts) and all(any(text in other for other in read) for text in texts)


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a value, but for the roles of messages."""
    if isinstance(value, Mapping):
        value = [inner for key, inner in value.items() if key not in ("role", "from")]
    if isinstance(value, list | tuple):
        for inner in value:
            yield from texts_in(inner)
    elif isinstance(value, str) and value.strip():
        yield value.strip()


def _prompt_texts(value: Any) -> Iterator[str]:
    """Texts of a prompt: one text, or those of messages that are not the assistant's."""
    for turn in value if isinstance(value, list | tuple) else [value]:
        role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
        if ROLES.get(str(role).lower()) != "assistant":
            yield from texts_in(turn)


_MEDIA_BYTES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"OggS", b"fLaC", b"ID3", b"II*\0", b"MM\0*")
_DATA_URLS = ("data:image/", "data:audio/", "data:video/")


def _is_media(value: Any) -> bool:
    """True if a value is an image or a sound, or a list of them, as ``datasets`` and parquet files have it."""
    if isinstance(value, list | tuple):
        return bool(value) and _is_media(value[0])
    if isinstance(value, Mapping):
        return value.keys() >= {"array", "sampling_rate"} or _is_media(value.get("bytes"))
    if isinstance(value, str):
        return value.startswith(_DATA_URLS)
    return isinstance(value, bytes) and (value.startswith(_MEDIA_BYTES) or value[4:8] == b"ftyp")
