"""Table of the columns that no form reads: which change what a row means, and which only describe it.

The columns that make a form are in the tables ``FORMS`` of :mod:`~lion_lightning.data.formats.sft` and
:mod:`~lion_lightning.data.formats.preference`; docs/data.md shows all three tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lion_lightning.data.formats.labels import FAULTS, LABELS, RATINGS, has_no, has_no_word, has_yes, is_yes
from lion_lightning.models.chat_template import REASONING

PROMPTS = ("prompt", "question", "instruction", "messages", "conversations")
"""Columns of prompts; where a row has several, those that are not read must say the same."""

ANSWERS = ("answer", "output", "completion", "text", "chosen", "rejected")
"""Columns of answers; one that is not read may repeat what was read."""

TOOLS = ("tools", "functions", "tool_definitions")
"""Columns of tools; few templates look for them in a message."""

THOUGHTS = (
    "thought",
    "thoughts",
    "think",
    "cot",
    "chain_of_thought",
    "rationale",
    "analysis",
    "scratchpad",
    "internal_monologue",
    "reasoning_text",
)
"""Columns, and keys of messages, of reasoning under names that no template reads."""


class Meaning(NamedTuple):
    """Columns that change what a row means; a row that has one which its form does not read is an error.

    Attributes:
        names: Names of the columns.
        what: What they hold, for the error.
        fix: What to do, for the error.
        is_lost: Whether a value that is not empty changes anything.
        of_prompt: Whether it changes the prompt, and not only the answer.
        is_text: Whether it is text that is not lost where another column repeats it.
        more: Pattern of further names.
    """

    names: tuple[str, ...]
    what: str
    fix: str
    is_lost: Callable[[Any], bool] = lambda value: True
    of_prompt: bool = True
    is_text: bool = False
    more: str = r"(?!)"


_MEDIA = r"""(?x) (?!(?:num|n|has|is|no|with|needs|contains)_) (?:[a-z\d]+_)*
    (?:(?:image|img|picture|photo|video|audio|waveform|spectrogram|sound|wav|mp3|mp4|gif|jpe?g|png|screenshot|
    thumbnail|pixel_value)s? | (?<![a-z\d]_)(?:media|frame|speech|clip|recording)s?) _?\d*
    (?:_(?:path|url|uri|link|file|file_?name|name|byte|data|base64|b64|value|feature|embed|embedding|list|array|content|
    video|image|audio|frame|clip|grid_thw)s?)*"""
"""Names of images and sounds; ``time_frame`` and ``social_media`` are something else."""

_HISTORY = r"""(?x) (?:(?:chat|conv|conversation|dialog|dialogue|message|turn|talk|session)s?_)histor(?:y|ies)
    |(?:prev|previous|past|prior|earlier|history|context)_
    (?:chat|message|turn|round|conversation|dialog|dialogue|utterance|exchange)s?"""
_LEAVE_OUT = "leave such rows out with a `transform` that returns []"
_UNWANTED = "the mark of an answer that is not wanted"
_NO_LABELS = f"{_LEAVE_OUT}; single answers with labels (KTO) cannot be trained"

MEANINGS = (
    Meaning(
        ("image", "video", "audio", "input_features"),
        "an image or sound, or the name of one",
        f"only text can be trained on; {_LEAVE_OUT}",
        more=_MEDIA,
    ),
    Meaning(
        ("history", "past"),
        "earlier rounds of the conversation",
        "`columns: {history: ...}` reads them before an instruction or a question; elsewhere put them before the "
        "prompt with a `transform`",
        is_text=True,
        more=_HISTORY,
    ),
    Meaning(
        ("input", "inputs", "context", "contexts", "documents"),
        "a part of the prompt",
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
        f"all rows count alike here; {_LEAVE_OUT}, or repeat a source with `fraction`",
        is_lost=lambda value: not is_yes(value),
        of_prompt=False,
    ),
    Meaning(LABELS, _UNWANTED, _NO_LABELS, is_lost=has_no, of_prompt=False),
    Meaning(FAULTS, _UNWANTED, _NO_LABELS, is_lost=has_yes, of_prompt=False),
    Meaning(RATINGS, _UNWANTED, _NO_LABELS, is_lost=has_no_word, of_prompt=False),
)
"""The columns that change what a row means."""

# fmt: off
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
"""Columns that only describe a row, as all names that end in ``_id``. They are listed as unused, without a warning."""
