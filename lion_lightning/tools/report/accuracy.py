"""Held-out accuracy of the stages, with 95% intervals over the seeds, or over the prompts of a single seed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from lion_lightning.tools.evaluate.intervals import Interval, mean_interval
from lion_lightning.tools.report.logs import ChainLogs

ALL = ""
"""The kind that all prompts are of."""


class Accuracy(NamedTuple):
    """Share of right answers.

    Attributes:
        stages: Names of the stages, in order.
        kinds: Kinds of prompts, in the order of the evaluation; empty if it names none.
        table: The evaluation's estimate with its interval over the prompts, one per seed, by stage and kind; the kind
            ``""`` has all prompts.
    """

    stages: list[str]
    kinds: list[str]
    table: dict[tuple[str, str], list[Interval]]

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return len(self.table[self.stages[0], ALL])

    @property
    def title(self) -> str:
        """Heading that says how many seeds there are and what the intervals are over."""
        if self.seeds == 1:
            return "Held-out accuracy [95% interval over the prompts]"
        return f"Held-out accuracy, {self.seeds} seeds [95% interval of the mean over the seeds]"

    def values(self, stage: str) -> list[float]:
        """Accuracy over all prompts, of each seed."""
        return [found.estimate for found in self.table[stage, ALL]]

    def overall(self, stage: str) -> Interval:
        """Mean over the seeds of the accuracy over all prompts."""
        return self.of_kind(stage, ALL)

    def of_kind(self, stage: str, kind: str) -> Interval:
        """Mean over the seeds of the accuracy over the prompts of a kind."""
        found = self.table[stage, kind]
        return found[0] if len(found) == 1 else mean_interval([each.estimate for each in found])

    def gain(self, stage: str) -> Interval | None:
        """Difference to the stage before, seed by seed; None for the first. Of one seed it has no interval."""
        position = self.stages.index(stage)
        if not position:
            return None
        before = self.values(self.stages[position - 1])
        return mean_interval([after - was for was, after in zip(before, self.values(stage), strict=True)])


def with_interval(value: Interval, form: str = "{:.3f}") -> str:
    """``0.545 [0.442, 0.649]``, each number in this format; the estimate alone where no interval is known."""
    if value.low == value.high:
        return form.format(value.estimate)
    return f"{form.format(value.estimate)} [{form.format(value.low)}, {form.format(value.high)}]"


def accuracy_of(chains: Sequence[ChainLogs]) -> Accuracy | None:
    """Collect the accuracies of all stages and seeds; None if nothing has one, or seeds have other stages.

    Stages without answers, such as a reward model's, are left out.
    """
    chosen = [[stage for stage in seed.stages if stage.evaluation.get("accuracy")] for seed in chains]
    names = [[stage.name for stage in stages] for stages in chosen]
    if not names[0] or names.count(names[0]) < len(names):
        return None
    kinds = list(chosen[0][0].evaluation["accuracy"]["by"])
    table: dict[tuple[str, str], list[Interval]] = {}
    for stage in chain.from_iterable(chosen):
        results = stage.evaluation["accuracy"]
        for kind in (ALL, *kinds):
            found = results["by"][kind] if kind else results
            interval = Interval(found["estimate"], found["low"], found["high"])
            table.setdefault((stage.name, kind), []).append(interval)
    return Accuracy(names[0], kinds, table)
