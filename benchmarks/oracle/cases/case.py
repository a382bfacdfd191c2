"""A case to compare, and how its sides are trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.oracle import by_hand
from benchmarks.oracle.comparison import Settings, Step
from benchmarks.oracle.differences import Difference
from benchmarks.oracle.rows import Prepared

Run = Callable[[Prepared, Settings], list[Step]]


@dataclass(frozen=True)
class Case:
    """An objective on both sides.

    Attributes:
        objective: In words.
        other: The other side in words.
        ours: Trains on our side.
        theirs: Trains on the other.
        settings: Settings of both.
        difference: Why they differ; None where they are to agree.
        shown_by: The same with the difference taken away, which must agree.
    """

    objective: str
    other: str
    ours: Run
    theirs: Run
    settings: Settings = field(default_factory=Settings)
    difference: Difference | None = None
    shown_by: tuple[Case, ...] = ()

    def with_proofs(self) -> list[Case]:
        """The case, and those that show what its difference comes from."""
        return [self, *(replace(one, objective=f"... {one.objective}") for one in self.shown_by)]

    def has(self, words: Sequence[str]) -> bool:
        """True if one of the words is in its description, or no words are given.

        Args:
            words: Words to look for.
        """
        return not words or any(word in f"{self.objective} {self.other}" for word in words)


def trl(name: str, **own: Any) -> Run:
    """A trainer of TRL's, which is imported when it runs.

    Args:
        name: Name of the trainer.
        **own: Settings of the objective; see ``theirs.train``.
    """

    def run(prepared: Prepared, settings: Settings) -> list[Step]:
        from benchmarks.oracle import theirs

        return theirs.train(prepared, settings, name, **own)

    return run


def hand(kind: str, make: Callable[[], by_hand.Objective]) -> Run:
    """A loop by hand.

    Args:
        kind: Kind of the rows.
        make: Makes the objective, once for each run.
    """
    return lambda prepared, settings: by_hand.train(kind, make(), prepared, settings)


def named(own: dict[str, Any]) -> str:
    """Settings of TRL's in words, without beta, which both sides have.

    Args:
        own: Settings of the objective.
    """
    parts = [f"{value}" if name == "loss_type" else f"{name}={value}" for name, value in own.items() if name != "beta"]
    return ", ".join(f"`{part}`" for part in parts)
