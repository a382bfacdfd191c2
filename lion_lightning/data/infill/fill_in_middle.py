"""Fill-in-the-middle with the tokens of today's code models (arXiv 2207.14255)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from lion_lightning.data.infill.corruption import Corrupted, Corruption, File, SpecialTokens


@dataclass(frozen=True)
class FillInMiddle(Corruption):
    """A file in three parts, of which the middle comes last: fill-in-the-middle (arXiv 2207.14255).

    PSM is ``<prefix> prefix <suffix> suffix <middle> middle EOS``, SPM is ``<prefix> <suffix> suffix <middle> prefix
    middle EOS``. The two cuts are uniform among the places between tokens; the middle has at least one token. The
    default tokens are Qwen2.5-Coder's.

    Args:
        prefix: Token before the prefix.
        suffix: Token before the suffix.
        middle: Token before the middle.
        end: Token behind the middle, which stops the generation of an infill; None for EOS.
        spm: Share of the infills in the order SPM; the others are PSM.

    Raises:
        ValueError: The share is not one.
    """

    prefix: str = "<|fim_prefix|>"
    suffix: str = "<|fim_suffix|>"
    middle: str = "<|fim_middle|>"
    end: str | None = None
    spm: float = 0.5

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 <= self.spm <= 1:
            raise ValueError(f"FillInMiddle: spm is {self.spm}; give a share from 0 to 1")

    @property
    @override
    def tokens(self) -> tuple[str, ...]:
        return self.prefix, self.suffix, self.middle, *([self.end] if self.end else [])

    @property
    @override
    def extra(self) -> int:
        return 4  # EOS or the end is new to a truncated file

    @override
    def apply(self, file: File, special: SpecialTokens, rng: np.random.Generator) -> Corrupted:
        first, last = np.sort(rng.choice(len(file.body) + 1, 2, replace=False))
        return self.lay_out(file, special, int(first), int(last), rng.random() < self.spm)

    def lay_out(self, file: File, special: SpecialTokens, start: int, stop: int, spm: bool) -> Corrupted:
        """Move tokens ``start`` to ``stop`` of the body to the end, in the order SPM or PSM."""
        begin, hole, fill = special.own[:1], special.own[1:2], special.own[2:3]
        before, behind = file.body[:start], file.body[stop:]
        parts = [begin, hole, behind, fill, before] if spm else [begin, before, hole, behind, fill]
        end = special.own[3:] if self.end else special.eos_ids()
        return Corrupted(np.concatenate([file.bos, *parts]), np.concatenate([file.body[start:stop], end]))
