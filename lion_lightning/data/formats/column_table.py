"""Table of the columns that no form reads: which change what a row means, and which only describe it; labels.

The columns that make a form are in the table ``FORMS`` of :mod:`~lion_lightning.data.formats.sft` and in those of
:mod:`~lion_lightning.data.formats.answers.forms`; docs/data.md shows all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any, NamedTuple

from lion_lightning.models.chat_template import REASONING

PROMPTS = ("prompt", "question", "instruction", "messages", "conversations")
"""Columns of prompts; where a row has several, those that are not read must say the same."""

ANSWERS = ("answer", "output", "completion", "response", "text", "chosen", "rejected")
"""Columns of answers; one that is not read may repeat what was read."""

ANSWER_LISTS = ("answers", "completions", "responses", "generations", "candidates", "outputs", "replies")
"""Columns of several answers to one prompt."""

SYNONYMS = {"system_prompt": "system", "system_message": "system", "system_instruction": "system"}
"""Columns that can only be a known one under another name."""

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "gpt-3.5", "gpt-4", "gpt4", "bing", "bard"), "assistant"),
    **dict.fromkeys(("claude", "gemini", "model", "bot", "chatbot", "ai", "llm"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_response", "function_result", "tool_response"), "tool"),
    **dict.fromkeys(("tool_result", "tool_results", "observation", "ipython"), "tool"),
}
"""Names of roles in small letters, of OpenAI's messages and of ShareGPT's dialects. OpenAI's ``developer`` is its newer
name of ``system``; all templates that know it show both alike."""

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


# --- labels of answers, and values that mean yes or no: booleans, numbers or words

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
_SKIN = re.compile("[\U0001f3fb-\U0001f3ff]")  # colors of a thumb
_DENIAL = re.compile(r"(?:not|non) ?|no (?=[a-z])|un|dis|in")  # before a yes: "not good", "non-preferred", "unchosen"
_JUDGED = re.compile(r" (?:answer|response|reply|completion|output|quality|example|sample|one)s?$")  # "bad answer"
_LONGEST_WORD = 99
_WORDS = dict.fromkeys(_YES, True) | dict.fromkeys(_NO, False)


def is_yes(value: Any) -> bool:
    """True if all values are yes, or 1."""
    return all(truth(one) is True for one in leaves(value))


def has_yes(value: Any) -> bool:
    """True if any value is yes, or 1."""
    return any(truth(one) is True for one in leaves(value))


def has_no(value: Any) -> bool:
    """True if any value is no, or 0 or less."""
    return any(truth(one) is False for one in leaves(value))


def has_no_word(value: Any) -> bool:
    """True if any text says no; numbers are ignored."""
    return any(truth(one) is False for one in leaves(value) if isinstance(one, str) and not _is_number(one))


def has_grade(value: Any) -> bool:
    """True if any value is a grade in words that is neither yes nor no: ``low``, ``medium quality``."""
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


def truth(value: Any) -> bool | None:
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


# --- columns by what they mean


class Meaning(NamedTuple):
    """Columns that change what a row means; a row that has one which its form does not read is an error.

    Attributes:
        names: Names of the columns.
        what: Their content, for the error.
        fix: How to fix the row, for the error.
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
_NO_LABELS = f"{_LEAVE_OUT}; UnpairedDataModule takes single answers with labels (for KTOModule)"

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
        f"a weight belongs to a message; {_LEAVE_OUT}, or give it to the answers as their `weight`",
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
