"""The answers of a round as tokens, read from the round's file: those in its pairs, or its groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from lion_lightning.data.formats.pairing import places_of
from lion_lightning.data.reports.row_messages import RowMessages
from lion_lightning.data.sources.readers import Numbers
from lion_lightning.data.store.tokenized import longest_sequence
from lion_lightning.rollouts.files import read_table
from lion_lightning.types import SampleSegment


class _Chosen(NamedTuple):
    """Trained answers of a prompt: their positions in the file, and pairs among them."""

    row: int
    answers: list[int]
    pairs: list[tuple[int, int]]


class RoundTokens:
    """The prompts of a round as tokenized examples: each prompt once, and each of its answers that is trained once.

    These are the answers of its pairs, in the order in which the pairs name them; or, for group objectives, all usable
    answers of a prompt that has two or more. Token ids are views of the memory-mapped file. Every token of an answer is
    a target, and no token of a prompt.

    Args:
        path: File of the round.
        groups: Whether to read groups, and no pairs.

    Attributes:
        raw_rows: Prompts with pairs, or with two usable answers.
        skipped_rows: 0, since no transform reads these rows.
        messages: Empty, for the same reason.
        segment_offsets: ``(examples + 1,)`` first segment of each prompt with its answers.
        segment_lengths: ``(segments,)`` tokens of each segment.
        values: ``(segments,)`` score of each answer; NaN for prompts.
        pair_offsets: ``(examples + 1,)`` first pair of each example.
        pairs: ``(pairs, 2)`` positions of chosen and rejected among the answers.
        groups: ``(examples, 2)`` 128-bit hash of the prompt.
        tokens: Hash of all tokens and pairs, in their order.
    """

    def __init__(self, path: Path, groups: bool = False) -> None:
        """Map the file and find the tokens of each prompt and answer."""
        self.path, self._of_groups = path, groups
        table = read_table(path)[0]
        chosen = list(_chosen(table, groups))
        self._rows = np.array([one.row for one in chosen], np.int64)  # (examples,) row of the table
        self.segment_offsets: Numbers = np.cumsum([0, *(1 + len(one.answers) for one in chosen)])
        self._find_tokens(table, chosen)
        self.pair_offsets: Numbers = np.cumsum([0, *(len(one.pairs) for one in chosen)])
        pairs = list(chain.from_iterable(one.pairs for one in chosen))
        self.pairs: npt.NDArray[np.int32] = np.array(pairs, np.int32).reshape(-1, 2)
        hashes = np.frombuffer(_column(table, "group").buffers()[1], np.uint64, 2 * len(table))
        self.groups: npt.NDArray[np.uint64] = hashes.reshape(-1, 2)[self._rows]
        self.raw_rows, self.skipped_rows = len(chosen), 0
        self.messages = RowMessages()
        places = (self._starts, self.segment_lengths, self.segment_offsets, self.pair_offsets, self.pairs)
        self.tokens = _hash(self._prompt_ids, self._answer_ids, *places).hex()

    def _find_tokens(self, table: Any, chosen: Sequence[_Chosen]) -> None:
        """Where each segment lies in the token ids of all prompts, or of all answers, and what an answer scored."""
        prompts, answers, scores = (_column(table, name) for name in ("prompt_ids", "token_ids", "scores"))
        self._prompt_ids, self._answer_ids = prompts.values.to_numpy(), answers.values.values.to_numpy()
        roots = np.zeros(self.segment_offsets[-1], np.bool_)
        roots[self.segment_offsets[:-1]] = True
        positions = list(chain.from_iterable(one.answers for one in chosen))
        within = np.array(positions, np.int64)  # (answers,) of the prompt
        rows = np.repeat(self._rows, np.diff(self.segment_offsets) - 1)  # (answers,)
        which = answers.offsets.to_numpy()[rows] + within  # (answers,) among all answers of the file
        bounds, answer_bounds = prompts.offsets.to_numpy(), answers.values.offsets.to_numpy()
        self._starts, stops = np.zeros((2, len(roots)), np.int64)
        self._starts[roots], stops[roots] = bounds[self._rows], bounds[self._rows + 1]
        self._starts[~roots], stops[~roots] = answer_bounds[which], answer_bounds[which + 1]
        self.segment_lengths: npt.NDArray[np.int32] = (stops - self._starts).astype(np.int32)
        self.values = np.full(len(roots), np.nan)
        self.values[~roots] = scores.values.to_numpy()[scores.offsets.to_numpy()[rows] + within]

    def __len__(self) -> int:
        """Number of prompts with answers that are trained."""
        return len(self._rows)

    @override
    def __reduce__(self) -> tuple[type[RoundTokens], tuple[Path, bool]]:
        """Travel to worker processes as a path."""
        return RoundTokens, (self.path, self._of_groups)

    @property
    def digests(self) -> npt.NDArray[np.uint64]:
        """``(examples, 2)`` 128-bit hash of each prompt, its answers and its pairs, whatever the scores."""
        content = [_hash(self.groups[row], *self._answers(row), self._pairs(row)) for row in range(len(self))]
        return np.frombuffer(b"".join(content), np.uint64).reshape(-1, 2)

    @property
    def longest(self) -> int:
        """Most tokens that a prompt has together with one of its answers."""
        return longest_sequence(self.segment_lengths, self.segment_offsets)

    def segment(self, row: int, start: int, stop: int) -> SampleSegment:
        """Tokens ``start`` to ``stop`` of an example, which lie in one segment; the ids are a read-only view."""
        first, last = int(self.segment_offsets[row]), int(self.segment_offsets[row + 1])
        before = np.cumsum(self.segment_lengths[first:last]) - self.segment_lengths[first:last]  # before each segment
        which = int(np.searchsorted(before, start, side="right")) - 1
        ids = self._answer_ids if which else self._prompt_ids
        begin = self._starts[first + which] - before[which]
        return SampleSegment(ids[begin + start : begin + stop], np.full(stop - start, which > 0))

    def where(self, row: int) -> str:
        """Place of the prompt of an example, in the file and where it was read from."""
        number = int(self._rows[row])
        return f"{self.path}[{number}] ({read_table(self.path)[0]['where'][number]})"

    def targets(self, rows: Numbers, starts: Numbers, stops: Numbers, roots: npt.NDArray[np.bool_]) -> Numbers:
        """Number of tokens trained in each span, ``(spans,)``: all of answers, none of prompts."""
        return np.where(roots, 0, stops - starts)

    def _answers(self, row: int) -> list[npt.NDArray[np.int32]]:
        part = slice(int(self.segment_offsets[row]) + 1, int(self.segment_offsets[row + 1]))
        spans = zip(self._starts[part], self.segment_lengths[part], strict=True)
        return [self._answer_ids[start : start + length] for start, length in spans]

    def _pairs(self, row: int) -> npt.NDArray[np.int32]:
        return self.pairs[self.pair_offsets[row] : self.pair_offsets[row + 1]]


def _chosen(table: Any, groups: bool) -> Iterator[_Chosen]:
    """The answers of each prompt that are trained."""
    for row, found in enumerate(table.select(["usable", "pairs", "left_out"]).to_pylist()):
        usable, pairs = found["usable"], found["pairs"]
        if found["left_out"]:
            continue
        if groups and len(usable) > 1:
            yield _Chosen(row, usable, [])
        elif pairs and not groups:
            places = places_of(pairs)
            yield _Chosen(row, list(places), [(places[chosen], places[rejected]) for chosen, rejected in pairs])


def _column(table: Any, name: str) -> Any:
    """A column of a table as one array, without a copy where the file has one batch."""
    chunks = table[name]
    return chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()


def _hash(*arrays: npt.NDArray[Any]) -> bytes:
    found = blake2b(digest_size=16)
    for array in arrays:
        found.update(len(array).to_bytes(8))
        found.update(array.tobytes())
    return found.digest()
