"""The pairs of a round as tokens, read from the round's file."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from lion_lightning.data.reports.row_messages import RowMessages
from lion_lightning.data.sources.readers import Numbers
from lion_lightning.rollouts.files import read_table
from lion_lightning.types import SampleSegment

_ANSWERS = slice(1, None)  # segments of a pair: prompt, chosen, rejected


class RoundTokens:
    """The pairs of a round as tokenized examples of three segments: prompt, chosen and rejected answer.

    Token ids are views of the memory-mapped file. Every token of an answer is a target, and no token of a prompt.

    Args:
        path: File of the round.

    Attributes:
        raw_rows: Prompts with pairs.
        skipped_rows: 0, since no transform reads these rows.
        messages: Empty, for the same reason.
        segment_offsets: ``(pairs + 1,)`` first segment of each pair.
        segment_lengths: ``(segments,)`` tokens of each segment.
        values: ``(segments,)`` score of each answer; NaN for prompts.
        pair_offsets: ``(pairs + 1,)`` position of each pair.
        pairs: ``(pairs, 2)`` positions of chosen and rejected: 0 and 1.
        groups: ``(pairs, 2)`` 128-bit hash of the prompt.
        tokens: Hash of all tokens and pairs, in their order.
    """

    def __init__(self, path: Path) -> None:
        """Map the file and find the tokens of each pair."""
        self.path = path
        table = read_table(path)[0]
        pairs, prompts, answers = _column(table, "pairs"), _column(table, "prompt_ids"), _column(table, "token_ids")
        per_row = np.diff(pairs.offsets.to_numpy())
        self._rows = np.repeat(np.arange(len(table)), per_row)  # (pairs,) row of the table
        chosen_rejected = pairs.values.values.to_numpy().reshape(-1, 2)  # (pairs, 2) among the answers of the row
        self._prompt_ids = prompts.values.to_numpy()
        self._answer_ids = answers.values.values.to_numpy()
        # (pairs, 3) bounds of prompt, chosen and rejected in the token ids of all prompts, or of all answers.
        rows = self._rows[:, None]
        which = answers.offsets.to_numpy()[rows] + chosen_rejected  # (pairs, 2) among all answers
        prompt_bounds, answer_bounds = prompts.offsets.to_numpy(), answers.values.offsets.to_numpy()
        self._starts = np.hstack([prompt_bounds[rows], answer_bounds[which]]).astype(np.int64)
        stops = np.hstack([prompt_bounds[rows + 1], answer_bounds[which + 1]]).astype(np.int64)
        self._lengths: npt.NDArray[np.int32] = (stops - self._starts).astype(np.int32)
        self.segment_lengths = self._lengths.ravel()
        self.segment_offsets, self.pair_offsets = 3 * np.arange(len(self) + 1), np.arange(len(self) + 1)
        scores = _column(table, "scores")
        pair_scores = scores.values.to_numpy()[scores.offsets.to_numpy()[rows] + chosen_rejected]
        self.values = np.insert(pair_scores, 0, np.nan, axis=1).ravel()
        self.pairs = np.tile(np.arange(2, dtype=np.int32), (len(self), 1))
        hashes = np.frombuffer(_column(table, "group").buffers()[1], np.uint64, 2 * len(table))
        self.groups: npt.NDArray[np.uint64] = hashes.reshape(-1, 2)[self._rows]
        self.raw_rows, self.skipped_rows = int(np.count_nonzero(per_row)), 0
        self.messages = RowMessages()
        self.tokens = _hash(self._prompt_ids, self._answer_ids, self._starts, self._lengths).hex()

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._rows)

    @override
    def __reduce__(self) -> tuple[type[RoundTokens], tuple[Path]]:
        """Travel to worker processes as a path."""
        return RoundTokens, (self.path,)

    @property
    def digests(self) -> npt.NDArray[np.uint64]:
        """``(pairs, 2)`` 128-bit hash of each pair's prompt and answers, whatever their scores."""
        content = [_hash(self.groups[pair], *self._answers(pair)) for pair in range(len(self))]
        return np.frombuffer(b"".join(content), np.uint64).reshape(-1, 2)

    @property
    def longest(self) -> int:
        """Most tokens that a prompt has together with one of its answers."""
        return int((self._lengths[:, 0] + self._lengths[:, _ANSWERS].max(axis=1)).max(initial=0))

    def segment(self, row: int, start: int, stop: int) -> SampleSegment:
        """Tokens ``start`` to ``stop`` of a pair, which lie in one of its segments; the ids are a read-only view."""
        before = np.cumsum(self._lengths[row]) - self._lengths[row]  # tokens before each segment
        which = int(np.searchsorted(before, start, side="right")) - 1
        ids = self._answer_ids if which else self._prompt_ids
        first = self._starts[row, which] - before[which]
        return SampleSegment(ids[first + start : first + stop], np.full(stop - start, which > 0))

    def where(self, row: int) -> str:
        """Place of the prompt of a pair in the file."""
        return f"{self.path}[{self._rows[row]}]"

    def targets(self, rows: Numbers, starts: Numbers, stops: Numbers, roots: npt.NDArray[np.bool_]) -> Numbers:
        """Number of tokens trained in each span, ``(spans,)``: all of answers, none of prompts."""
        return np.where(roots, 0, stops - starts)

    def _answers(self, pair: int) -> list[npt.NDArray[np.int32]]:
        spans = zip(self._starts[pair, _ANSWERS], self._lengths[pair, _ANSWERS], strict=True)
        return [self._answer_ids[start : start + length] for start, length in spans]


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
