"""What becomes of columns that a form does not read: harmless, counted, or refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from lion_lightning.data.formats.labels import (
    FAULTS,
    LABELS,
    RATINGS,
    has_grade,
    has_no,
    has_no_word,
    has_yes,
    is_yes,
    leaves,
)
from lion_lightning.data.formats.media import MEDIA, is_media
from lion_lightning.data.reports.row_messages import add_message, add_warning
from lion_lightning.models.chat_template import REASONING

if TYPE_CHECKING:
    from lion_lightning.data.formats.columns import Fields

PROMPTS = ("prompt", "question", "instruction", "messages", "conversations")
"""Columns that say what is asked; of several, those that are not read must say the same."""

ANSWERS = ("answer", "output", "completion", "text", "chosen", "rejected")
"""Columns of answers; one that is not read and repeats what was read is no loss."""

TOOLS = ("tools", "functions", "tool_definitions")
"""Names of the tools of a row; in a message few templates look for them."""

# fmt: off
THOUGHTS = (
    "thought", "thoughts", "think", "cot", "chain_of_thought", "rationale", "analysis", "scratchpad",
    "internal_monologue", "reasoning_text",
)
"""Names of what was thought before an answer, of columns and of keys of messages, that templates do not go by."""

HARMLESS = frozenset((
    # names and places
    "id", "ids", "idx", "index", "key", "uid", "uuid", "guid", "hash", "md5", "sha", "sha1", "sha256",
    "row_idx", "row_index", "row_number", "conversation_hash", "source", "sources", "data_source", "origin",
    "dataset", "dataset_name", "dataset_source", "subset", "split", "config", "file", "filename", "file_name",
    "file_path", "filepath", "path", "url", "urls", "uri", "link", "license", "licence", "copyright", "version",
    # people and times
    "author", "authors", "creator", "annotator", "annotators", "username", "user_name", "date", "datetime",
    "day", "time", "timestamp", "timestamps", "tstamp", "created", "created_at", "created_on", "updated",
    "updated_at", "modified", "year",
    # languages, models, sizes, kinds
    "lang", "langs", "language", "languages", "locale", "model", "models", "model_name", "generator",
    "generation_model", "chosen_model", "rejected_model", "engine", "token_count", "tokens", "num_tokens",
    "n_tokens", "token_length", "length", "lengths", "len", "num_turns", "n_turns", "turns_count", "word_count",
    "num_words", "num_chars", "char_count", "category", "categories", "subcategory", "tag", "tags", "topic",
    "topics", "domain", "task_type", "difficulty", "redacted", "openai_moderation", "parallel_tool_calls",
    "", "unnamed: 0", "__index_level_0__",  # the index of a table, as pandas writes it
))
# fmt: on
"""Names of columns that describe a row and say nothing that could be trained on; so do names that end in ``_id``."""


class Meaning(NamedTuple):
    """What columns of a kind change.

    Attributes:
        names: Their names.
        what: What they hold, which is lost if they are not read.
        fix: What to do.
        is_lost: Whether a value that is not empty changes anything.
        of_prompt: Whether it changes what is asked, and not only the answer.
        is_text: Whether it is text that may stand in another column, too, where it is no loss.
        more: A pattern of further names.
    """

    names: tuple[str, ...]
    what: str
    fix: str
    is_lost: Callable[[Any], bool] = lambda value: True
    of_prompt: bool = True
    is_text: bool = False
    more: str = r"(?!)"


_EARLIER = r"""(?x) (?:(?:chat|conv|conversation|dialog|dialogue|message|turn|talk|session)s?_)histor(?:y|ies)
    |(?:prev|previous|past|prior|earlier|history|context)_
    (?:chat|message|turn|round|conversation|dialog|dialogue|utterance|exchange)s?"""
_WITHOUT = "leave such rows out with a `transform` that returns []"
_UNWANTED = "the mark of an answer that is not wanted"
_NO_LABELS = f"{_WITHOUT}; single answers with labels (KTO) cannot be trained"

MEANINGS = (
    Meaning(
        ("image", "video", "audio", "input_features"),
        "a picture or sound, or names one",
        f"only text can be trained on; {_WITHOUT}",
        more=MEDIA,
    ),
    Meaning(
        ("history", "past"),
        "earlier rounds of the conversation",
        "`columns: {history: ...}` reads them before an instruction or a question; elsewhere put them before the "
        "prompt with a `transform`",
        is_text=True,
        more=_EARLIER,
    ),
    Meaning(
        ("input", "inputs", "context", "contexts", "documents"),
        "a part of what is asked",
        "put it into the prompt with a `transform`; behind an instruction or a question `columns: {input: ...}` does",
        is_text=True,
    ),
    Meaning(
        ("system", "system_prompt", "system_message"),
        "the system message",
        "`columns: {system: ...}` reads it in a chat, and `format: chat` makes a chat of plain text",
        is_text=True,
    ),
    Meaning(
        TOOLS,
        "tools that the template shows",
        "`columns: {tools: ...}` reads JSON schemas in a chat, and `format: chat` makes a chat of plain text",
    ),
    Meaning(
        ("chat_template_kwargs",),
        "settings of the chat template",
        "plain text has no template; make it a chat with `format: chat`",
    ),
    Meaning(
        (*REASONING, *THOUGHTS),
        "a part of the answer",
        "put it into the answer with a `transform`",
        of_prompt=False,
        is_text=True,
    ),
    Meaning(
        ("weight", "weights", "loss_weight", "loss_weights", "sample_weight", "train", "loss_mask", "completion_mask"),
        "how much of the row is trained",
        f"all rows count alike here; {_WITHOUT}, or repeat a source with `fraction`",
        is_lost=lambda value: not is_yes(value),
        of_prompt=False,
    ),
    Meaning(LABELS, _UNWANTED, _NO_LABELS, is_lost=has_no, of_prompt=False),
    Meaning(FAULTS, _UNWANTED, _NO_LABELS, is_lost=has_yes, of_prompt=False),
    Meaning(RATINGS, _UNWANTED, _NO_LABELS, is_lost=has_no_word, of_prompt=False),
)
"""Well-known columns that change what a row means. Where no form reads them, they are refused by name."""

_LONGEST_NAME = 64  # that is held against patterns, whose time grows with it
_BY_NAME = {name: meaning for meaning in MEANINGS for name in meaning.names}


def check_unused_columns(fields: Fields, form: str, only_prompt: bool = False) -> None:
    """Refuse a row if a column that changes its meaning was not read; note every other column that was not.

    Args:
        fields: The row, after a form has read it.
        form: That form, for errors.
        only_prompt: Whether only the prompt is wanted, so that columns of answers may remain.

    Raises:
        ValueError: A column would be lost.
    """
    for name in [name for name in fields.unread if not _is_empty(fields.peek(name))]:
        value = fields.peek(name)
        counts = all(str(leaf).isdigit() for leaf in leaves(value))  # as the index of a table, which has no name
        own = printable(fields.own(name)) or ("index" if counts else "a column without a name")
        meaning = _meaning(name, fields.own(name)) or (_BY_NAME["image"] if is_media(value) else None)
        if name in PROMPTS:
            _require_repeated(fields, name, form)
        elif (meaning.is_text if meaning else name in ANSWERS) and _is_repeated(texts_in(value), fields):
            continue
        elif meaning is None or (only_prompt and not meaning.of_prompt):
            add_message("kept" if only_prompt else "unused", own)
        elif meaning.is_lost(value):
            raise ValueError(
                f"the column {own!r} holds {meaning.what}, and {form} has no place for it; {meaning.fix}, or give the "
                f"source `ignore: [{own}]`"
            )
        elif has_grade(value):
            add_warning(
                f"the column {own!r} grades in words, and all rows are trained alike: leave those that are not wanted "
                f"out with a `transform` that returns [], or give the source `ignore: [{own}]`"
            )
        elif not is_yes(value):
            add_message("unused", own)


def require_prompt_kept(row: Mapping[str, Any], where: str) -> None:
    """Refuse a benchmark's question with a column that changes what is asked; benchmarks ask texts alone.

    Args:
        row: The row of the question.
        where: Its place, for errors.

    Raises:
        ValueError: There is such a column.
    """
    for name, value in row.items():
        meaning = _meaning(name)
        if meaning is not None and meaning.of_prompt and not _is_empty(value):
            raise ValueError(
                f"{where}: the column {printable(name)!r} holds {meaning.what}, and a benchmark's question has no "
                "place for it; take it out of the file"
            )


def printable(name: str) -> str:
    """The name of a column as a line can show it."""
    return (name if name.isprintable() else ascii(name)[1:-1])[:80]


def is_harmless(name: str) -> bool:
    """Whether a column of this name only describes a row."""
    plain = name.lower()
    return plain in HARMLESS or plain.endswith(("_id", "_ids", "-id"))


def may_ask(name: str, value: Any) -> bool:
    """Whether a column that no form reads may hold the prompt: it has text, and its name does not say what else it is.

    A long text is more than the name of a thing: an article may stand in a column that is called its source.
    """
    meaning, texts = _meaning(name), list(texts_in(value))
    if meaning is not None and meaning.of_prompt and not meaning.is_text:
        return False  # it is refused by its name
    is_long = any(len(text) > 100 and len(text.split()) > 10 for text in texts)
    return is_long or (bool(texts) and not is_harmless(name))


def _meaning(*names: str) -> Meaning | None:
    return next(filter(None, map(_known, names)), None)


@lru_cache(4096)
def _known(name: str) -> Meaning | None:
    listed = next((_BY_NAME[spelled] for spelled in spellings(name) if spelled in _BY_NAME), None)
    if listed is not None or len(name) > _LONGEST_NAME:
        return listed
    return next((meaning for meaning in MEANINGS if re.fullmatch(meaning.more, spellings(name)[1])), None)


@lru_cache(4096)
def spellings(name: str) -> tuple[str, str]:
    """A name in small letters, and with its words joined by ``_``: ``isGood`` and ``is-good`` are ``is_good``."""
    name = name.strip()
    return name.lower(), re.sub(r"[\s-]+|(?<=[a-z])(?=[A-Z])", "_", name).lower()  # "CoT" is one word


def _require_repeated(fields: Fields, name: str, form: str) -> None:
    """Make sure that a second prompt says nothing that was not read, or repeats in other words all that was asked."""
    read = [other for other in fields if other not in fields.unread and other in PROMPTS]
    asked = [text for other in read for text in _asked(fields.peek(other))]
    second = list(_asked(fields.peek(name)))
    if not second or _is_repeated(second, fields):
        return
    if asked and all(text in "\n".join(second) for text in asked):
        return
    own = printable(fields.own(name))
    if any(map(fields.is_mapped, read)):
        add_message("unused", own)  # `columns` says which of them is the prompt
        return
    raise ValueError(
        f"the column {own!r} asks something else than {form}, which is read; say with `columns` which of them is the "
        f"prompt, or give the source `ignore: [{own}]`"
    )


def _is_repeated(texts: Iterable[str], fields: Fields) -> bool:
    """Whether there are texts, and all of them stand in what was read."""
    said = [text for name in fields if name not in fields.unread for text in texts_in(fields.peek(name))]
    repeated = [any(text in other for other in said) for text in texts]
    return bool(repeated) and all(repeated)


def texts_in(value: Any) -> Iterator[str]:
    """All that is said in a value, without the names of who says it."""
    if isinstance(value, Mapping):
        value = [inner for key, inner in value.items() if key not in ("role", "from")]
    if isinstance(value, list | tuple):
        for inner in value:
            yield from texts_in(inner)
    elif isinstance(value, str) and value.strip():
        yield value.strip()


def _asked(value: Any) -> Iterator[str]:
    """What a value asks: a text, or what messages say that are not the assistant's."""
    for turn in value if isinstance(value, list | tuple) else [value]:
        speaker = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
        if speaker not in ("assistant", "gpt", "chatgpt", "model"):
            yield from texts_in(turn)


def _is_empty(value: Any) -> bool:
    """Whether a column says nothing."""
    return all(leaf is None or (isinstance(leaf, str) and not leaf.strip()) for leaf in leaves(value))
