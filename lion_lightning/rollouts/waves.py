"""The prompts of a round, asked in waves until enough of them have answers that differ in score."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lion_lightning.rollouts.prompts.dynamic import DynamicSampling
from lion_lightning.rollouts.prompts.plan import PromptCandidates
from lion_lightning.rollouts.rollout import Rollout, has_spread

logger = logging.getLogger(__name__)

SPARE = "its answers differ, but the round has as many as dynamic sampling wants"
"""Why a prompt is left out that something could be learned from."""


@dataclass
class Waves:
    """Prompts that a round has asked so far, and those that it asks next.

    Attributes:
        candidates: Prompts that it may ask.
        dynamic: When to ask further ones; None to ask all of them at once.
        chunk_size: Prompts that are sampled together.
        asked: Number of prompts asked so far.
        scored: These prompts with scores and what is trained of them, on the first rank.
        counts: Of each wave, the prompts asked and those of them that something can be learned from; on the first rank.
    """

    candidates: PromptCandidates
    dynamic: DynamicSampling | None
    chunk_size: int
    asked: int = 0
    scored: list[Rollout] = field(default_factory=list)
    counts: list[list[int]] = field(default_factory=list)

    def begin(self) -> list[Rollout]:
        """The first wave, with the monitor prompts."""
        count = self.candidates.size if self.dynamic else len(self.candidates.prompts)
        return [*self.take(count), *self.candidates.monitors]

    def take(self, count: int) -> list[Rollout]:
        """The next prompts."""
        start, self.asked = self.asked, min(self.asked + count, len(self.candidates.prompts))
        return self.candidates.prompts[start : self.asked]

    @property
    def all_asked(self) -> bool:
        """True if no wave can follow."""
        return self.asked == len(self.candidates.prompts)

    @property
    def found(self) -> int:
        """Prompts so far that something can be learned from."""
        return sum(found for _, found in self.counts)

    def add(self, scored: Sequence[Rollout]) -> int:
        """Add what a wave has given; the number of prompts of the next one, 0 for none."""
        self.scored += scored
        before = sum(asked for asked, _ in self.counts)  # `asked` counts this wave already
        self.counts.append([self.asked - before, sum(map(has_spread, scored))])
        if self.dynamic is None or self.all_asked:
            return 0
        return self.dynamic.next_wave(self.asked, self.found, self.candidates.size, self.chunk_size)

    def finish(self, number: int) -> list[Rollout]:
        """All prompts asked, with no more of them trained on than wanted; warns if fewer were found."""
        # Prompts that are too long were in no chunk, so none of the scored ones are these.
        asked = self.candidates.prompts[: self.asked]
        rollouts = [*self.scored, *(rollout for rollout in asked if rollout.left_out)]
        if self.dynamic is None:
            return rollouts
        wanted = self.dynamic.groups or self.candidates.size
        if self.found < wanted:
            self._warn(number, wanted)
        for place, rollout in enumerate(rollouts):  # the first ones asked are kept
            if has_spread(rollout):
                wanted -= 1
                if wanted < 0:
                    rollouts[place] = replace(rollout, left_out=SPARE)
        return rollouts

    def _warn(self, number: int, wanted: int) -> None:
        assert self.dynamic is not None
        why = "as many as `most` allows"
        if self.candidates.kept:
            why = f"no more are left without the {self.candidates.kept} that later rounds need"
        elif self.asked < self.dynamic.most * self.candidates.size:
            why = "no more are left"
        logger.warning(
            "round %d: answers to %d of %d prompts differ in score, where dynamic sampling wants %d; %s",
            *(number, self.found, self.asked, wanted, why),
        )
