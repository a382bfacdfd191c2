"""Detectors that look at the preference pairs of the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from typing_extensions import override

from lion_lightning.callbacks.monitors.health.detector import MOST_ROWS, Detector, Pairs
from lion_lightning.callbacks.monitors.health.findings import Finding

CLOSE = "one token apart"
LEFT_OUT = {
    "identical": ("identical answers", "answers identical once truncated"),
    "empty": ("an answer without a supervised token",),
}
"""Causes for which data modules leave pairs out, by kind."""

TIED = ("equal scores",)
"""The same of ties."""

LEAST_TOKENS = 5
"""In shorter answers a token may well be all that differs."""


class DegeneratePairs(Detector):
    """Pairs whose answers are nearly the same: identical, empty, one the beginning of the other, one token apart.

    Args:
        share: Share of all pairs that may be identical, empty or a beginning, together.
        close: Share that may be one token apart, which may well be what is to be learned.
    """

    symptom = "degenerate pairs"
    advice = (
        "Such pairs teach an accident, as where an answer was cut off, and push down the very tokens that the chosen "
        "answer is made of. Check the columns that answers are read from, how rejected ones were made, and "
        "data.max_length"
    )

    def __init__(self, share: float = 0.2, close: float = 0.5) -> None:
        super().__init__()
        self.share, self.close = share, close

    @override
    def on_pairs(self, pairs: Pairs) -> Finding | None:
        kinds = [degenerate(chosen, rejected) for chosen, rejected in pairs.answers]
        weight = (pairs.read - sum(pairs.left_out.values())) / max(
            len(kinds), 1
        )  # pairs that each drawn one stands for
        counts = {kind: count * weight / pairs.read for kind, count in Counter(filter(None, kinds)).items()}
        for kind, causes in LEFT_OUT.items():
            counts[kind] = counts.get(kind, 0.0) + sum(pairs.left_out.get(cause, 0) for cause in causes) / pairs.read
        close = counts.get(CLOSE, 0.0)
        share = sum(counts.values()) - close
        severity = max(share / self.share, close / self.close)
        if severity < 1:
            return None
        parts = ", ".join(f"{part:.0%} {kind}" for kind, part in counts.items() if part)
        seen = f"of {pairs.read:,} pairs {parts} (limits {self.share:.0%}, and {self.close:.0%} one token apart)"
        rows = [pairs.where(place) for place, kind in enumerate(kinds) if kind][:MOST_ROWS]
        return self.finding(0, share + close, self.share, seen, severity=severity, rows=tuple(rows))


def degenerate(chosen: Sequence[int], rejected: Sequence[int]) -> str | None:
    """How two answers, each with the token that ends it, are nearly the same; None if they are not."""
    short, long = sorted((list(chosen), list(rejected)), key=len)  # the same whichever of them is chosen
    if short == long:
        return "identical"
    if len(short) < 2:  # the end-of-turn token alone
        return "empty"
    same_end = short[-1] == long[-1]
    beginning = short[:-1] if same_end else short
    if len(beginning) < len(long) and long[: len(beginning)] == beginning and len(short) < len(long):
        return "cut off or continued"
    if len(short) >= LEAST_TOKENS and _is_one_apart(short, long):
        return CLOSE
    return None


def _is_one_apart(short: Sequence[int], long: Sequence[int]) -> bool:
    """True if one token is another, or one is missing."""
    start = 0
    while start < len(short) and short[start] == long[start]:
        start += 1
    # behind the first token that differs all is equal, with that token replaced or left out
    return len(long) - len(short) < 2 and list(short[start + len(short) + 1 - len(long) :]) == list(long[start + 1 :])
