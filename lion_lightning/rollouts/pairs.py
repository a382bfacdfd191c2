"""A round of on-policy sampling as a source of pairs, like any other source of a mixture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from lion_lightning.cache import hash_json
from lion_lightning.data.formats.pairing import SampledPair
from lion_lightning.data.sources.readers import FileRows, Numbers, Row
from lion_lightning.data.sources.source import Source
from lion_lightning.rollouts.rounds import Rollout, read_rollouts
from lion_lightning.types import SampleSegment

_VERSION = 1  # part of the fingerprint; raise it whenever the same round gives other pieces


@dataclass(frozen=True)
class RoundRows(FileRows):
    """The rollouts of a round's file that have pairs, as raw rows."""

    @override
    def __len__(self) -> int:
        """Number of rollouts with pairs."""
        return len(self._rollouts)

    @cached_property
    def _rollouts(self) -> list[tuple[int, Rollout]]:
        return [(place, rollout) for place, rollout in enumerate(read_rollouts(self.path)) if rollout.pairs]

    @override
    def take(self, numbers: Numbers) -> Iterator[Row]:
        """Rollouts of these numbers, each in a row's only column."""
        for number in numbers.tolist():
            place, rollout = self._rollouts[number]
            yield Row(f"{self.path}[{place}]", {"rollout": rollout})


@dataclass(frozen=True)
class RoundSource(Source):
    """The pairs of a round as a source of a mixture."""

    @override
    def open(self) -> RoundRows:
        """The round's rollouts."""
        return RoundRows(Path(self.path))


class RoundEncoder:
    """Reads the pairs of a round: the tokens are those that were sampled, and each token of an answer is trained."""

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[SampledPair]:
        """The pairs of a rollout."""
        made: Rollout = row["rollout"]
        ids = [answer.token_ids or () for answer in made.answers]
        return [
            SampledPair(
                made.prompt.input_ids,
                ids[chosen],
                ids[rejected],
                made.scores[chosen] - made.scores[rejected],
                made.group,
            )
            for chosen, rejected in made.pairs
        ]

    def encode_samples(
        self, examples: Sequence[SampledPair], where: Sequence[str]
    ) -> list[tuple[SampleSegment, SampleSegment, SampleSegment]]:
        """Prompt, chosen and rejected of each pair."""
        return [
            (_piece(pair.prompt, -1, False), _piece(pair.chosen, 0, True), _piece(pair.rejected, 0, True))
            for pair in examples
        ]

    def fingerprint(self) -> str:
        """Hash of what decides the pieces, besides the round."""
        return hash_json([type(self).__name__, _VERSION])


def _piece(ids: Sequence[int], parent: int, supervised: bool) -> SampleSegment:
    return SampleSegment(np.array(ids, dtype=np.int32), np.full(len(ids), supervised), parent)
