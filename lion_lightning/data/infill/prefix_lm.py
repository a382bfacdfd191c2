"""Prefix language models: a prefix that is seen in both directions, and what follows it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from lion_lightning.data.infill.corruption import Corrupted, Corruption, File, SpecialTokens
from lion_lightning.types import SampleSegment


@dataclass(frozen=True)
class PrefixLM(Corruption):
    """A bidirectional prefix, which is not trained, and what follows it, trained left to right (arXiv 2305.02309).

    CodeGen2 tried it for one model that encodes and writes, and dropped it. Models with layers that stay causal refuse
    such batches. Generate by :func:`~lion_lightning.models.generation.prefix.after_prefixes`: ``generate`` alone, and
    engines, run prompts causally.

    Args:
        infill: A corruption whose context is the prefix and whose answer follows; None for a document as it is, cut at
            a uniform place.

    Raises:
        ValueError: The corruption has a prefix itself.
    """

    infill: Corruption | None = None

    def __post_init__(self) -> None:
        """Check the corruption."""
        if isinstance(self.infill, PrefixLM):
            raise ValueError("PrefixLM: infill is a PrefixLM, too; give the corruption within it, or leave it out")

    @property
    @override
    def tokens(self) -> tuple[str, ...]:
        return self.infill.tokens if self.infill else ()

    @property
    @override
    def extra(self) -> int:
        return self.infill.extra if self.infill else 0

    @override
    def apply(self, file: File, special: SpecialTokens, rng: np.random.Generator) -> Corrupted:
        if self.infill:
            return self.infill.apply(file, special, rng)
        cut = int(rng.integers(1, len(file.body)))
        return Corrupted(np.concatenate([file.bos, file.body[:cut]]), np.concatenate([file.body[cut:], file.eos]))

    @override
    def segments(self, made: Corrupted) -> tuple[SampleSegment, ...]:
        untrained, trained = np.zeros(len(made.context), np.bool_), np.ones(len(made.answer), np.bool_)
        prefix = SampleSegment(made.context, untrained, bidirectional=True)
        return prefix, SampleSegment(made.answer, trained, parent=0)
