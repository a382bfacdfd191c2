"""What a measure found: one number a round for each side, their medians, spread and ratio, and the target."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Figure:
    """One line of the table in docs/performance.md.

    Attributes:
        what: What was measured, on what.
        unit: Of ``ours`` and ``peer``: "pairs/s", "MiB".
        ours: A number a round.
        peer: The peer's in the same rounds; empty where a number stands for itself (seconds to start, say).
        against: Who or what the peer is, in its setting.
        least: The target, if what counts is ours / peer (ours alone, without a peer) and it shall be at least this.
        most: The target, if it shall be at most this.
        command: What measures this line alone.
        extra: More numbers worth keeping.
    """

    what: str
    unit: str
    ours: list[float]
    peer: list[float] = field(default_factory=list)
    against: str = ""
    least: float | None = None
    most: float | None = None
    command: str = ""
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """Ours over the peer's, a round each; ours without a peer."""
        return [mine / other for mine, other in zip(self.ours, self.peer, strict=True)] if self.peer else self.ours

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios: a round's two sides were measured side by side."""
        return median(self.ratios)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.least is None and self.most is None:
            return None
        return (self.least is None or self.ratio >= self.least) and (self.most is None or self.ratio <= self.most)
