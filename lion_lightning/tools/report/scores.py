"""Held-out scores of the stages and their differences, with 95% intervals over the seeds or over the prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from lion_lightning.tools.evaluate.intervals import Interval, bootstrap, mean_interval
from lion_lightning.tools.report.answers import Scored, by_prompt
from lion_lightning.tools.report.logs import ChainLogs

FEWEST = 6
"""Prompts that a difference needs to be decided: of fewer, all may differ to one side by chance (0.5^5 > 0.025)."""


class ScoreSlice(NamedTuple):
    """Scope of a score: all prompts, the prompts of a kind, or a part of the score on all prompts.

    Attributes:
        axis: ``all``, ``kind`` or ``part``.
        name: Name of the kind or the part; empty for all.
    """

    axis: str
    name: str = ""

    def of(self, answers: Sequence[Scored]) -> dict[Any, float]:
        """Score of each answer that counts, by its prompt."""
        found = {}
        for key, one in by_prompt(answers).items():
            if self.axis == "part":
                if self.name in one.parts:
                    found[key] = one.parts[self.name]
            elif self.axis == "all" or one.kind == self.name:
                found[key] = one.score
        return found


ALL = ScoreSlice("all")


class Verdict(NamedTuple):
    """A difference in words.

    Attributes:
        kind: ``better``, ``worse``, ``undecided`` or ``unknown``.
        text: E.g. ``better by 0.16 [0.12, 0.21]``.
    """

    kind: str
    text: str


class Scores(NamedTuple):
    """Mean scores, with a verifier the share of right answers.

    Attributes:
        measure: What the score is: ``accuracy`` where all scores are 0 or 1, else ``mean score``.
        stages: Names of the stages, in order.
        kinds: Kinds of prompts, in the order of the evaluation; empty if it names none.
        parts: Parts of the grade, likewise.
        table: The evaluation's estimate with its interval over the prompts, one per seed, by stage and slice.
        answers: Answers of each seed, by stage; empty where they are not known.
    """

    measure: str
    stages: list[str]
    kinds: list[ScoreSlice]
    parts: list[ScoreSlice]
    table: dict[tuple[str, ScoreSlice], list[Interval]]
    answers: dict[str, list[list[Scored]]]

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return len(self.table[self.stages[0], ALL])

    @property
    def over(self) -> str:
        """The source of the intervals: seeds or prompts."""
        return f"{self.seeds} seeds" if self.seeds > 1 else "the prompts of one seed"

    def values(self, stage: str) -> list[float]:
        """Mean score over all prompts, of each seed."""
        return [found.estimate for found in self.table[stage, ALL]]

    def of(self, stage: str, part: ScoreSlice = ALL) -> Interval:
        """Mean score over the seeds; of a single seed with the interval over its prompts."""
        found = self.table[stage, part]
        return found[0] if len(found) == 1 else mean_interval([each.estimate for each in found])

    def gain(self, stage: str, before: str, part: ScoreSlice = ALL) -> Interval | None:
        """Difference of two stages: seed by seed, or prompt by prompt of a single seed.

        Seeds that differ by the very same number, as two may by one prompt of many, would give an interval without any
        width: then it is over the prompts of all seeds. The bounds are NaN where the answers of a single seed are not
        known, or fewer than :data:`FEWEST`. None where a stage has no such slice.
        """
        if (stage, part) not in self.table or (before, part) not in self.table:
            return None
        ours, theirs = self.table[stage, part], self.table[before, part]
        found = mean_interval([one.estimate - other.estimate for one, other in zip(ours, theirs, strict=True)])
        if found.high - found.low > 1e-9:  # several seeds, whose differences are not all the same
            return found
        differences = self._differences(stage, before, part)
        if len(differences) >= FEWEST:
            return bootstrap(differences)
        return found if len(ours) > 1 else Interval(found.estimate, math.nan, math.nan)

    def _differences(self, stage: str, before: str, part: ScoreSlice) -> list[float]:
        """Differences of the scores of two stages' answers to the same prompts, of all seeds."""
        found = []
        for ours, theirs in zip(self.answers.get(stage, []), self.answers.get(before, []), strict=False):
            after, was = part.of(ours), part.of(theirs)
            found += [after[key] - was[key] for key in after if key in was]
        return found

    def steps(self) -> list[tuple[str, str]]:
        """Each stage with the one before it, and the last with the first."""
        found = list(zip(self.stages[1:], self.stages, strict=False))
        return [*found, (self.stages[-1], self.stages[0])] if len(self.stages) > 2 else found


class Decline(NamedTuple):
    """Prompts, or a part of the score, that a stage does worse than one before, by an interval below zero.

    Attributes:
        what: The prompts or the part that got worse.
        after: The stage.
        before: The stage that it is compared with.
        verdict: The difference.
    """

    what: str
    after: str
    before: str
    verdict: Verdict


class Changes(NamedTuple):
    """Number of prompts, over all seeds, whose answers scored more, less and the same."""

    better: int
    worse: int
    same: int


def with_interval(value: Interval, form: str = "{:.3f}") -> str:
    """``0.545 [0.442, 0.649]``, each number in this format; the estimate alone where no interval is known."""
    if math.isnan(value.low):
        return form.format(value.estimate)
    return f"{form.format(value.estimate)} [{form.format(value.low)}, {form.format(value.high)}]"


def verdict(gain: Interval | None) -> Verdict:
    """A difference in words: decided if its interval does not hold zero."""
    if gain is None:
        return Verdict("unknown", "not measured")
    estimate, low, high = gain
    if math.isnan(low):
        return Verdict("unknown", f"{estimate:+.3f}, without an interval: not decided")
    if low > 0:
        return Verdict("better", f"better by {with_interval(gain)}")
    if high < 0:  # told as a loss above 0
        return Verdict("worse", f"worse by {with_interval(Interval(-estimate, -high, -low))}")
    return Verdict("undecided", f"not decided: {with_interval(gain, '{:+.3f}')}")


def declines(scores: Scores) -> tuple[list[Decline], int]:
    """Declines from stage to stage, and from the first to the last; and the number of comparisons that were made."""
    names = {"all": "all prompts", "kind": "prompts of the kind {}", "part": "the part {} of the score"}
    found, count = [], 0
    for after, before in scores.steps():
        for part in (ALL, *scores.kinds, *scores.parts):
            change = verdict(scores.gain(after, before, part))
            count += change.kind != "unknown"
            if change.kind == "worse":
                found.append(Decline(names[part.axis].format(part.name), after, before, change))
    return found, count


def changes(scores: Scores, after: str, before: str) -> Changes | None:
    """How many answers of a stage score more, less and the same as another's; None where they are not known."""
    if not scores.answers[after] or not scores.answers[before]:
        return None
    signs = []
    for ours, theirs in zip(scores.answers[after], scores.answers[before], strict=True):
        was = ALL.of(theirs)
        for key, score in ALL.of(ours).items():
            if key in was:
                signs.append((score > was[key]) - (score < was[key]))  # 1, -1 or 0
    return Changes(signs.count(1), signs.count(-1), signs.count(0))


def scores_of(chains: Sequence[ChainLogs]) -> Scores | None:
    """Collect the scores of the stages that were evaluated with every seed; None if there are none.

    Stages without answers, such as a reward model's, are left out.
    """
    evaluated = [[stage for stage in seed.stages if stage.evaluation.get("accuracy")] for seed in chains]
    names = [{stage.name for stage in stages} for stages in evaluated]
    common = [stage.name for stage in evaluated[0] if all(stage.name in others for others in names)]
    if not common:
        return None
    table: dict[tuple[str, ScoreSlice], list[Interval]] = {}
    answers: dict[str, list[list[Scored]]] = {}
    for stage in chain.from_iterable(evaluated):
        if stage.name in common:
            answers.setdefault(stage.name, []).append(stage.answers)
            for part, value in _estimates(stage.evaluation["accuracy"]).items():
                table.setdefault((stage.name, part), []).append(value)
    slices = []
    for name, part in table:  # of kinds and parts, those that every stage of every seed has
        if name == common[0] and all(len(table.get((other, part), [])) == len(chains) for other in common):
            slices.append(part)
    every = [one.score for seeds in answers.values() for rows in seeds for one in rows]
    return Scores(
        measure="accuracy" if every and {*every} <= {0.0, 1.0} else "mean score",
        stages=common,
        kinds=[part for part in slices if part.axis == "kind"],
        parts=[part for part in slices if part.axis == "part"],
        table=table,
        answers={name: seeds if all(seeds) else [] for name, seeds in answers.items()},
    )


def _estimates(results: Mapping[str, Any]) -> dict[ScoreSlice, Interval]:
    """Results of an evaluation by slice."""
    found = {ALL: results}
    found |= {ScoreSlice("kind", name): one for name, one in results.get("by", {}).items()}
    found |= {ScoreSlice("part", name): one for name, one in results.get("parts", {}).items()}
    return {part: Interval(one["estimate"], one["low"], one["high"]) for part, one in found.items()}
