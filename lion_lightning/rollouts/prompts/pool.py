"""The prompts of a run: unique, without their rows' answers, and read from disk when they are needed."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from lion_lightning.cache import atomic_write, cache_folder, explain_write_errors, hash_json
from lion_lightning.data.document_filters.applied import AppliedFilters
from lion_lightning.data.document_filters.candidates import Candidates
from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.formats.pairing import PromptAnswer
from lion_lightning.data.formats.sft import Completion, Conversation
from lion_lightning.data.reports.bad_rows import leave_out, refuse_mostly_bad
from lion_lightning.data.reports.row_messages import (
    RowMessages,
    collect_messages,
    collect_row_messages,
    log_warnings_once,
)
from lion_lightning.data.selection.mixture import repeats
from lion_lightning.data.sources.readers import Numbers, Row
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.digests import prompt_digest, prompt_of
from lion_lightning.rollouts.prompts.forms import recognize_prompt
from lion_lightning.types import Prompt

_HASH_BYTES = 16


class PoolPrompt(NamedTuple):
    """A prompt of the pool.

    Attributes:
        prompt: The prompt.
        group: 16-byte hash of it, which all of its pairs share.
    """

    prompt: Prompt
    group: bytes


class PromptPool:
    """The unique prompts of several sources. Texts are read when they are needed; only hashes stay in memory.

    Args:
        sources: Sources of the prompts. A fraction above 1 lets prompts come more than once.
        tokenizer: The policy's tokenizer, with its chat template.
        without: Groups of prompts of the validation data, which are left out.
        document_filters: Rules that leave out prompts by what they say; None for none.

    Attributes:
        order: ``(prompts,)`` position of each prompt in the order of the sources, repeated as their fractions say.
        left_out: Number of prompts left out, by cause.
        sizes: Number of rows read, by the source's name.
        messages: Counted messages about the rows, by the source's name.

    Raises:
        ValueError: A source or a row is wrong, or no prompt is left.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: PreTrainedTokenizerBase,
        without: Collection[bytes] = (),
        document_filters: AppliedFilters | None = None,
    ) -> None:
        self.sources = list(sources)
        self.document_filters = document_filters or AppliedFilters()
        self.left_out: Counter[str] = Counter()
        self.sizes: dict[str, int] = {}
        self.messages: dict[str, RowMessages] = {}
        self._has_chat_template = tokenizer.chat_template is not None
        self._rows = [source.open() for source in self.sources]
        self._encoder = ChatEncoder(tokenizer, mask="completion")
        # Source, raw row, and example within the row of each prompt; flat, since there may be millions of prompts.
        self._locations = array("q")
        self._hashes = bytearray()
        self._warned: set[str] = set()
        seen = dict.fromkeys(without, "validated on")
        parts = [self._add_source(number, source, seen) for number, source in enumerate(self.sources)]
        self.order: Numbers = np.concatenate(parts)
        if not len(self.order):
            counts = ", ".join(f"{count} {cause}" for cause, count in self.left_out.items()) or "the sources are empty"
            raise ValueError(f"data.prompts: no prompt is left ({counts}); name other sources")

    def _add_source(self, number: int, source: Source, seen: dict[bytes, str]) -> Numbers:
        """Add the prompts of a source that were not seen, and return their positions, repeated by its fraction."""
        first = len(self)
        with collect_messages() as messages:
            if bad := self._add_rows(number, source, seen):
                messages.bad_rows = cache_folder("bad_rows") / f"{hash_json([source.path, bad])}.jsonl"
                with explain_write_errors(messages.bad_rows.parent, "bad rows"):
                    messages.bad_rows.parent.mkdir(parents=True, exist_ok=True)
                    with atomic_write(messages.bad_rows) as temporary:
                        temporary.write_text("".join(bad), "utf-8")
        refuse_mostly_bad(source.label, messages, self.sizes[source.label])
        source.require_columns(messages)
        self.messages[source.label] = messages
        self.left_out.update(messages["left out"])
        self._filter(number, first)
        return first + repeats(len(self) - first, source)

    def _add_rows(self, number: int, source: Source, seen: dict[bytes, str]) -> list[str]:
        """Add the prompts of a source, and return its bad rows."""
        bad: list[str] = []
        rows = self._rows[number]
        chosen = source.choose(len(rows))
        self.sizes[source.label] = len(chosen)
        bar = tqdm(rows.take(chosen), f"prompts of {source.label}", len(chosen), unit=" rows", delay=2)
        for row_number, row in zip(chosen.tolist(), bar, strict=True):
            try:
                with collect_row_messages():
                    prompts = source.examples(row, _Reader())
                    if source.on_bad_row == "skip":  # what cannot be rendered is found now, and not in a later round
                        for prompt in prompts:
                            self._encoder.prompt(prompt_of(prompt))
            except ValueError as error:
                if source.on_bad_row == "error":
                    raise
                bad.append(leave_out(row, error))
                continue
            for example, prompt in enumerate(prompts):
                group = prompt_digest(prompt_of(prompt))
                if group in seen:
                    self.left_out[seen[group]] += 1  # by the cause: a duplicate, or validated on
                    continue
                seen[group] = "duplicate"
                self._locations.extend((number, row_number, example))
                self._hashes += group
        return bad

    def _filter(self, number: int, first: int) -> None:
        """Leave out what the document filters leave out of a source, whose prompts are those from ``first`` on."""
        for rule in range(len(self.document_filters.rules)):
            hashes = np.frombuffer(bytes(self._hashes[first * _HASH_BYTES :]), np.uint64).reshape(-1, 2)
            places = np.array(self._locations[3 * first :], np.int64).reshape(-1, 3)
            if not len(hashes):
                return
            candidates = Candidates(
                self.sources[number],
                hashes,
                partial(self._read_again, number, places),
                partial(self._places, number, places),
            )
            kept = np.ones(len(hashes), np.bool_)
            for cause, choice in self.document_filters.decide(rule, candidates).causes.items():
                self.left_out[cause] += int((choice & kept).sum())
                kept &= ~choice
            self._locations[3 * first :] = array("q", places[kept].ravel().tolist())
            self._hashes[first * _HASH_BYTES :] = hashes[kept].tobytes()

    def _read_again(self, number: int, places: Numbers) -> Iterator[PromptAnswer]:
        """The prompts of a source at these places, in their order, which is that of the rows."""
        source, rows = self.sources[number], np.unique(places[:, 1])
        bar = tqdm(self._rows[number].take(rows), f"filter prompts of {source.label}", len(rows), unit=" rows", delay=2)
        for row, (_, found) in zip(bar, groupby(places.tolist(), key=itemgetter(1)), strict=True):
            prompts = source.examples(row, _Reader())
            for _, _, example in found:
                yield prompt_of(prompts[example])

    def _places(self, number: int, places: Numbers, positions: Sequence[int]) -> list[str]:
        wanted = places[[*positions], 1]
        rows = np.unique(wanted)
        found = {row: read.where for row, read in zip(rows.tolist(), self._rows[number].take(rows), strict=True)}
        return [found[row] for row in wanted.tolist()]

    def __len__(self) -> int:
        """Number of unique prompts."""
        return len(self._hashes) // _HASH_BYTES

    def warnings(self) -> list[str]:
        """Likely mistakes in the rows of each source."""
        lines: list[str] = []
        for source in self.sources:
            messages, rows = self.messages[source.label], self.sizes[source.label]
            lines += source.warnings(messages, rows, self._has_chat_template)
        return lines + self.document_filters.warnings()

    def group(self, position: int) -> bytes:
        """Hash of a prompt."""
        return bytes(self._hashes[position * _HASH_BYTES : (position + 1) * _HASH_BYTES])

    def split(self, count: int, seed: int) -> tuple[list[int], list[int]]:
        """Shuffle the prompts and split off the first ones.

        Returns:
            Positions of the first ``count`` prompts, and of all others, repeated like :attr:`order`. None comes again
            before all of its source have come.
        """
        order = self._in_passes(self.order[np.random.default_rng(seed).permutation(len(self.order))]).tolist()
        first = list(dict.fromkeys(order))[:count]
        taken = set(first)
        return first, [position for position in order if position not in taken]

    def _in_passes(self, order: Numbers) -> Numbers:
        """Put the repeated prompts of each source behind its others; the sources keep their places in the order."""
        times, seen = np.zeros(len(order), np.int64), Counter[int]()
        for place, position in enumerate(order.tolist()):
            times[place] = seen[position]
            seen[position] += 1
        sources, arranged = np.array(self._locations[::3])[order], order.copy()
        for number in range(len(self.sources)):
            places = np.flatnonzero(sources == number)
            arranged[places] = order[places][times[places].argsort(kind="stable")]
        return arranged

    def take(self, positions: Sequence[int]) -> list[PoolPrompt]:
        """Read the prompts at these positions, in their order."""
        by_source: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for position in dict.fromkeys(positions):
            number, row, example = self._locations[3 * position : 3 * position + 3]
            by_source[number].append((position, row, example))
        found: dict[int, PoolPrompt] = {}
        for number, places in sorted(by_source.items()):
            rows = np.unique([row for _, row, _ in places]).astype(np.int64)  # each is read once
            raw = dict(zip(rows.tolist(), self._rows[number].take(rows), strict=True))
            for position, row, example in places:
                prompt = self._read(self.sources[number], raw[row], example)
                found[position] = PoolPrompt(prompt, self.group(position))
        return [found[position] for position in positions]

    def _read(self, source: Source, row: Row, example: int) -> Prompt:
        reader = _Reader()
        answered = source.examples(row, reader)[example]
        prompt = prompt_of(answered)
        try:
            with log_warnings_once(self._warned, "prompts"):
                text, ids = self._encoder.prompt(prompt)
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from error
        messages: tuple[dict[str, Any], ...] = ()
        rendered_with: dict[str, Any] = {}
        if isinstance(answered, Completion):
            original = answered.completion or None
        else:
            assert isinstance(prompt, Conversation)
            messages = tuple(turn.to_dict() for turn in prompt.messages)
            rendered_with = {"tools": prompt.tools or (), "template_kwargs": prompt.chat_template_kwargs or {}}
            answer = answered.messages[answered.prompt_turns or 0 :]
            original = answer[0].content if len(answer) == 1 and not answer[0].extra else None  # if it is one text
        return Prompt(text, tuple(ids), messages, dict(reader.rows[example]), original, row.where, **rendered_with)


class _Reader:
    """Reads prompts and keeps their rows, with what a transform added for the judges."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []

    def __call__(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[PromptAnswer]:
        if (prompt := recognize_prompt(row, columns)) is None:
            return []
        self.rows.append(row)
        return [prompt]
