"""What a policy is asked in online training: prompts of any source, without whatever answers stand beside them."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.formats.columns import Form, Row, read_row
from lion_lightning.data.formats.pairing import BestWorst, Preference, PromptAnswer
from lion_lightning.data.formats.preference import FORMS as PREFERENCE_FORMS
from lion_lightning.data.formats.sft import (
    ASKED,
    CHAT,
    FORMS,
    Completion,
    Conversation,
    conversation,
    read_request,
    read_settings,
    with_system,
)
from lion_lightning.data.formats.turns import Message, read_text, read_turns
from lion_lightning.data.reports.row_messages import (
    RowMessages,
    collect_messages,
    collect_row_messages,
    log_warnings_once,
)
from lion_lightning.data.selection.mixture import repeats
from lion_lightning.data.sources.readers import Numbers
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.digests import prompt_digest, prompt_of
from lion_lightning.types import Prompt

# --- from a raw row to its prompt


def recognize_prompt(row: Row, columns: Mapping[str, str] | None = None) -> PromptAnswer | None:
    """Read the prompt of a raw row, with the row's own answer behind it if it has one.

    Known are all forms of preference pairs (the answer is the chosen one) and of SFT rows but plain ``text``; and,
    without an answer, ``messages`` or ``conversations`` that end before it, ``prompt`` (messages, or plain text that is
    continued without a template), ``question`` and ``instruction`` (a user's turn). Other columns are kept for judges,
    but for those that change what is asked.

    Args:
        row: The raw row, keys to values.
        columns: The row's own name for a known column, e.g. ``{"question": "prompt"}`` for a chat.

    Returns:
        A conversation with ``prompt_turns`` set, or a completion; the answer is missing or empty if there is none.
        None for a pair that would be left out.

    Raises:
        ValueError: The row has no known form, breaks the rules of its form, or has a column that changes what is asked
            and that the form has no place for.
    """
    return read_row(row, columns or {}, PROMPT_FORMS, only_prompt=True)


def _preferred(parse: Callable[..., list[Preference]], row: Row) -> PromptAnswer | None:
    pairs = parse(row, BestWorst())
    return pairs[0].chosen if pairs else None


def _answered(parse: Callable[..., Any], row: Row) -> PromptAnswer | None:
    example: PromptAnswer = parse(row)
    if isinstance(example, Completion) or example.prompt_turns is not None:
        return example
    return example._replace(prompt_turns=len(example.messages) - 1)


def _turns(column: str, row: Row) -> PromptAnswer:
    turns = with_system(row, read_turns(row[column], column))
    asked = turns[:-1] if turns[-1].role == "assistant" else turns
    conversation((*asked, Message("assistant", "?")))  # are the roles in order?
    return Conversation(turns, len(asked), **read_settings(row))


def _prompt(row: Row) -> PromptAnswer:
    if isinstance(row["prompt"], str):
        return Completion(read_text(row["prompt"], "prompt"), "")
    return _turns("prompt", row)


def _asked(column: str, row: Row) -> PromptAnswer:
    turns = with_system(row, read_request(row, column))
    return Conversation(turns, len(turns), **read_settings(row))


_READ_HERE = ({"messages"}, {"conversations"}, {"text"})
PROMPT_FORMS: tuple[Form[PromptAnswer | None], ...] = (
    *(Form(form.required, form.optional, partial(_preferred, form.parse)) for form in PREFERENCE_FORMS),
    Form(("messages",), CHAT, partial(_turns, "messages")),
    Form(("conversations",), CHAT, partial(_turns, "conversations")),
    *(
        Form(form.required, form.optional, partial(_answered, form.parse))
        for form in FORMS
        if set(form.required) not in _READ_HERE
    ),
    Form(("prompt",), CHAT, _prompt),
    Form(("question",), ASKED, partial(_asked, "question")),
    Form(("instruction",), ASKED, partial(_asked, "instruction")),
)


# --- the prompts of a run


class PoolPrompt(NamedTuple):
    """A prompt of the pool.

    Attributes:
        prompt: What is asked.
        group: Hash of it; all pairs of a prompt share it.
    """

    prompt: Prompt
    group: bytes


_HASH_BYTES = 16


class _Place(NamedTuple):
    """Where a prompt is found again: source, raw row, which of the row's examples."""

    source: int
    row: int
    example: int


class PromptPool:
    """The unique prompts of several sources; texts are read when they are needed, not held.

    Args:
        sources: Where the prompts come from. A fraction above 1 lets prompts be asked more than once.
        tokenizer: The policy's tokenizer, with its chat template.
        without: Groups of prompts that are validated on, and not to be asked.

    Attributes:
        order: ``(asked,)`` position of each prompt, in the order of the sources, as often as their fractions say.
        left_out: Prompts left out, by cause.
        sizes: Rows read, by the source's name.
        messages: Counted messages about them, by the source's name.

    Raises:
        ValueError: A source or a row is wrong, or nothing is left.
    """

    def __init__(
        self, sources: Sequence[Source], tokenizer: PreTrainedTokenizerBase, without: Collection[bytes] = ()
    ) -> None:
        self.sources = list(sources)
        self.left_out: Counter[str] = Counter()
        self.sizes: dict[str, int] = {}
        self.messages: dict[str, RowMessages] = {}
        self._has_chat_template = tokenizer.chat_template is not None
        self._rows = [source.open() for source in self.sources]
        self._encoder = ChatEncoder(tokenizer, mask="completion")
        self._places = array("q")  # of each prompt, one after the other, and so its hash: no object a prompt
        self._hashes = bytearray()
        self._warned: set[str] = set()
        parts, seen = [], dict.fromkeys(without, "validated on")
        for number, source in enumerate(self.sources):
            first = len(self)
            with collect_messages() as self.messages[source.label]:
                self._scan(number, source, seen)
            source.require_columns(self.messages[source.label])
            self.left_out.update(self.messages[source.label]["left out"])
            parts.append(first + repeats(len(self) - first, source))
        self.order: Numbers = np.concatenate(parts)
        if not len(self.order):
            counts = ", ".join(f"{count} {cause}" for cause, count in self.left_out.items()) or "the sources are empty"
            raise ValueError(f"data.prompts: there is nothing to ask ({counts}); name other sources")

    def __len__(self) -> int:
        """Number of unique prompts."""
        return len(self._hashes) // _HASH_BYTES

    def warnings(self) -> list[str]:
        """What is likely not meant in the rows of each source."""
        lines: list[str] = []
        for source in self.sources:
            messages, rows = self.messages[source.label], self.sizes[source.label]
            lines += source.warnings(messages, rows, self._has_chat_template)
        return lines

    def group(self, position: int) -> bytes:
        """Hash of a prompt."""
        return bytes(self._hashes[position * _HASH_BYTES : (position + 1) * _HASH_BYTES])

    def _place(self, position: int) -> _Place:
        size = len(_Place._fields)
        return _Place(*self._places[position * size : (position + 1) * size])

    def fingerprint(self) -> list[str]:
        """What decides which prompts there are, a hash a source."""
        return [
            f"{rows.fingerprint()} {source.identity()}" for rows, source in zip(self._rows, self.sources, strict=True)
        ]

    def split(self, count: int, seed: int) -> tuple[list[int], list[int]]:
        """Positions of the first ``count`` prompts of a random order, and all others in that order, as often as asked.

        Args:
            count: How many to set apart.
            seed: Seed of the order.
        """
        order = self.order[np.random.default_rng(seed).permutation(len(self.order))].tolist()
        apart = list(dict.fromkeys(order))[:count]
        taken = set(apart)
        return apart, [position for position in order if position not in taken]

    def take(self, positions: Sequence[int]) -> list[PoolPrompt]:
        """Read the prompts at these positions, in their order.

        Raises:
            ValueError: The chat template cannot render one.
        """
        found: dict[int, PoolPrompt] = {}
        places = {position: self._place(position) for position in positions}
        for number, source in enumerate(self.sources):
            mine = [position for position, place in places.items() if place.source == number]
            rows = np.unique([places[position].row for position in mine]).astype(np.int64)
            raw = dict(zip(rows.tolist(), self._rows[number].take(rows), strict=True)) if len(rows) else {}
            for position in mine:
                place = places[position]
                reader = _Reader()
                whole = source.examples(raw[place.row], reader)[place.example]
                row = raw[place.row]._replace(values=reader.rows[place.example])
                found[position] = PoolPrompt(self._prompt(whole, row), self.group(position))
        return [found[position] for position in positions]

    def _scan(self, number: int, source: Source, seen: dict[bytes, str]) -> None:
        """Take in a source's prompts but those that were seen, which are counted by the cause that ``seen`` gives."""
        rows = self._rows[number]
        chosen = source.choose(len(rows))
        self.sizes[source.label] = len(chosen)
        for row_number, row in zip(
            map(int, chosen),
            tqdm(rows.take(chosen), f"prompts of {source.label}", len(chosen), unit=" rows", delay=2),
            strict=True,
        ):
            with collect_row_messages():
                prompts = source.examples(row, _Reader())
            for place, whole in enumerate(prompts):
                group = prompt_digest(prompt_of(whole))
                if group in seen:
                    self.left_out[seen[group]] += 1
                    continue
                seen[group] = "duplicate"
                self._places.extend((number, row_number, place))
                self._hashes += group

    def _prompt(self, whole: PromptAnswer, row: Any) -> Prompt:
        asked = prompt_of(whole)
        try:
            with log_warnings_once(self._warned, "prompts"):
                text, ids = self._encoder.prompt(asked)
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from error
        turns = asked.messages if isinstance(asked, Conversation) else ()
        messages = tuple(turn.to_dict() for turn in turns)
        return Prompt(text, tuple(ids), messages, dict(row.values), _original(whole), row.where)


class _Reader:
    """Reads prompts and keeps the rows that they were read from: what a transform adds is there for the judges."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def __call__(self, row: Row, columns: Mapping[str, str]) -> list[PromptAnswer]:
        if (whole := recognize_prompt(row, columns)) is None:
            return []
        self.rows.append(row)
        return [whole]


def _original(whole: PromptAnswer) -> str | None:
    """The row's own answer, if it is one text."""
    if isinstance(whole, Completion):
        return whole.completion or None
    answer = whole.messages[whole.prompt_turns or 0 :]
    return answer[0].content if len(answer) == 1 and not answer[0].extra else None
