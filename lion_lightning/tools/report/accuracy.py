"""Held-out accuracy of the stages, with intervals over the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lion_lightning.tools.evaluate.intervals import Interval, mean_interval
from lion_lightning.tools.report.logs import ChainLogs

ALL = ""
"""The kind that all prompts are of."""


class Accuracy(NamedTuple):
    """Share of right answers.

    Attributes:
        stages: Names of the stages, in order.
        kinds: Kinds of prompts, in the order of the evaluation.
        table: One value a seed, by stage and kind; ``""`` is the kind that all prompts are of.
    """

    stages: list[str]
    kinds: list[str]
    table: dict[tuple[str, str], list[float]]

    @property
    def seeds(self) -> int:
        """How many seeds there are."""
        return len(self.table[self.stages[0], ALL])

    def values(self, stage: str) -> list[float]:
        """Accuracy over all prompts, of each seed."""
        return self.table[stage, ALL]

    def overall(self, stage: str) -> Interval:
        """Mean over the seeds of the accuracy over all prompts."""
        return mean_interval(self.values(stage))

    def of_kind(self, stage: str, kind: str) -> Interval:
        """Mean over the seeds of the accuracy over the prompts of a kind."""
        return mean_interval(self.table[stage, kind])

    def gain(self, stage: str) -> Interval | None:
        """What a stage added to the one before it, seed by seed; None for the first."""
        place = self.stages.index(stage)
        if not place:
            return None
        before = self.values(self.stages[place - 1])
        return mean_interval([after - was for was, after in zip(before, self.values(stage), strict=True)])


def accuracy_of(chains: Sequence[ChainLogs]) -> Accuracy | None:
    """Collect the accuracies of all stages and seeds.

    Args:
        chains: A run's.

    Returns:
        None if a stage was not evaluated, or seeds have different stages.
    """
    stages = [stage.name for stage in chains[0].stages]
    whole = all([stage.name for stage in chain.stages] == stages for chain in chains)
    found = [[stage.evaluation.get("accuracy") or {} for stage in chain.stages] for chain in chains]
    if not whole or not all(all(row) for row in found):
        return None
    kinds = list(found[0][0]["by"])
    table = {(stage, ALL): [row[place]["estimate"] for row in found] for place, stage in enumerate(stages)}
    for kind in kinds:
        for place, stage in enumerate(stages):
            table[stage, kind] = [row[place]["by"][kind]["estimate"] for row in found]
    return Accuracy(stages, kinds, table)
