"""Settings of all sides, what they log at a step, and the differences between two sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

TOLERANCE = 1e-4


class Step(NamedTuple):
    """Numbers of an optimizer step.

    Attributes:
        loss: Loss of the step, as the trainer logs it.
        norm: Norm of the gradient before clipping, as the trainer logs it.
    """

    loss: float
    norm: float


@dataclass(frozen=True)
class Settings:
    """Settings of a training, the same on all sides. Dropout is off, and weights and arithmetic are fp32.

    Attributes:
        steps: Optimizer steps.
        accumulate: Micro-batches a step.
        micro_batch: Rows of a micro-batch.
        left_out: Rows that the last step has too few.
        optimizer: ``adamw`` or ``sgd``.
        learning_rate: The peak.
        warmup: Optimizer steps of a warmup that a straight line to zero follows; None for a constant rate.
        their_schedule: True if our side has the schedule of ``transformers``, too.
        weight_decay: Weight decay of matrices; norms have none.
        clip: Largest norm of the gradient.
        attention: Attention of the models that are not packed: ``eager`` or ``sdpa``.
        updates: Optimizer steps on a round of answers, for policy gradients.
    """

    steps: int = 20
    accumulate: int = 2
    micro_batch: int = 2
    left_out: int = 0
    optimizer: str = "adamw"
    learning_rate: float = 3e-4
    warmup: int | None = None
    their_schedule: bool = False
    weight_decay: float = 0.1
    clip: float = 1.0
    attention: str = "eager"
    updates: int = 1

    @property
    def rows(self) -> int:
        """Rows of all steps."""
        return self.steps * self.accumulate * self.micro_batch - self.left_out


@dataclass(frozen=True)
class Comparison:
    """Two sides of the same training.

    Attributes:
        ours: Our steps.
        theirs: The other side's.
    """

    ours: Sequence[Step]
    theirs: Sequence[Step]

    @property
    def loss(self) -> float:
        """Largest difference of a step's losses: absolute, and relative where the loss is above 1."""
        return max(abs(one.loss - other.loss) / max(1.0, abs(other.loss)) for one, other in self._pairs)

    @property
    def norm(self) -> float:
        """Largest difference of a step's gradient norms, relative."""
        return max(abs(one.norm - other.norm) / other.norm for one, other in self._pairs)

    @property
    def agrees(self) -> bool:
        """True if both are within the tolerance at every step, and no number is NaN."""
        return self.loss <= TOLERANCE and self.norm <= TOLERANCE

    @property
    def _pairs(self) -> list[tuple[Step, Step]]:
        return list(zip(self.ours, self.theirs, strict=True))
