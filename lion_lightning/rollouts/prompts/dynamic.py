"""Dynamic sampling: a round asks on until enough prompts have answers that differ in score."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class DynamicSampling:
    """Asks further prompts until enough have answers that differ in score (DAPO, arXiv 2503.14476, section 3.2).

    A round asks in waves. The first one has the round's prompts; after each, the first rank counts the prompts that
    something can be learned from: groups whose usable answers differ in score, or prompts with a pair without a tie.
    Where too few do, the next wave has as many prompts as would give the missing ones at the share so far, in whole
    chunks. What is found beyond the number wanted is left out, in the order of asking, and counted.

    The policy's weights are pushed once a round: sampler and judge stay open through all of its waves.

    Args:
        groups: Prompts with such answers that a round is to have; None for ``prompts_per_round``.
        most: At most so many times the round's prompts are asked.
        in_turns: Close the sampler while the judge works, and the judge while the sampler works, for a judge's model
            and an engine that do not fit a device together; the weights are then pushed once a wave.

    Raises:
        ValueError: A number is out of range.
    """

    groups: int | None = None
    most: float = 4.0
    in_turns: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.groups is not None and self.groups < 1:
            raise ValueError(f"OnPolicySampling.dynamic: groups is {self.groups}; give a number above 0, or none")
        if not 1 <= self.most < math.inf:
            raise ValueError(f"OnPolicySampling.dynamic: most is {self.most}; give a number of at least 1")

    def identity(self) -> dict[str, Any]:
        """Settings that decide which prompts are asked and kept."""
        return {name: value for name, value in asdict(self).items() if name != "in_turns"}

    def next_wave(self, asked: int, found: int, size: int, chunk_size: int) -> int:
        """Prompts of the next wave; 0 if a round has what is wanted.

        >>> DynamicSampling().next_wave(asked=32, found=24, size=32, chunk_size=4)
        12

        Args:
            asked: Prompts asked so far.
            found: Those of them that something can be learned from.
            size: The round's prompts, which a wave has at most.
            chunk_size: Prompts that are sampled together.
        """
        missing = (self.groups or size) - found
        if missing <= 0:
            return 0
        needed = math.ceil(missing * asked / found) if found else size
        return min(math.ceil(needed / chunk_size) * chunk_size, size)
