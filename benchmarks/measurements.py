"""What a measure found: one number a round for each side, their medians, spread and ratio, and the target."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

HEADER = ("| what | against | ours | peer | ratio (rounds) | target | |", "|---|---|---|---|---|---|---|")


@dataclass(frozen=True)
class Measurement:
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

    def row(self) -> str:
        """A line of the table: medians, the median of the rounds' ratios with its range, target, whether it is met."""
        peer = f"{_digits(median(self.peer))}" if self.peer else ""
        spread = f"{_digits(min(self.ratios))}-{_digits(max(self.ratios))}"
        target = (
            f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}" if self.most is not None else ""
        )
        said = {True: "met", False: "missed", None: ""}[self.met]
        cells = (f"{self.what}, {self.unit}", self.against, _digits(median(self.ours)), peer)
        return f"| {' | '.join(cells)} | {_digits(self.ratio)} ({spread}) | {target} | {said} |"


def table(measurements: Iterable[Measurement]) -> list[str]:
    """Lines of a Markdown table.

    Args:
        measurements: A line each.
    """
    return [*HEADER, *(measurement.row() for measurement in measurements)]


def show(measurements: Iterable[Measurement]) -> None:
    """Print the table, and what else was found, below.

    Args:
        measurements: Its lines.
    """
    measurements = list(measurements)
    print(*table(measurements), sep="\n")
    for measurement in measurements:
        for name, value in measurement.extra.items():
            print(f"{measurement.what}: {name}: {_digits(value)}")


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
