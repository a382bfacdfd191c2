"""Rules about a stage: what its metrics say should be done about it, beyond what `HealthMonitor` looks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from lion_lightning.tools.report.facts import progress_of, stage_title
from lion_lightning.tools.report.logs import Stage

FEW_STEPS, FEW_SIGNALS, MANY_CUT, RISE = 10, 0.3, 0.05, 0.02
"""Limits of rules: optimizer steps; shares of prompts, and of answers; rise of a score over two rounds."""


class Advice(NamedTuple):
    """Something to do.

    Attributes:
        what: What to do.
        why: The reason, with its numbers.
        code: A command, or lines of a config; empty for none.
    """

    what: str
    why: str
    code: str = ""


Rule = Callable[[Sequence[Stage]], Advice | None]
"""A rule about a stage, given with all its seeds."""


def _short(stages: Sequence[Stage]) -> Advice | None:
    progress = progress_of(stages[0])
    if not progress.done or not 0 < progress.steps < FEW_STEPS:
        return None
    what = "Make more optimizer steps: raise trainer.max_epochs, or lower trainer.accumulate_grad_batches."
    why = f"{_title(stages)} made {progress.steps}: its warmup and a few examples decide what it learned."
    return Advice(what, why)


def diverged(stages: Sequence[Stage]) -> Advice | None:
    """Advice where the training loss of a stage is NaN to the end: it comes before all that its metrics say."""
    since = [stage.metrics.nan_since["train/loss"] for stage in stages if "train/loss" in stage.metrics.nan_since]
    if not since:
        return None
    why = f"The loss of {_title(stages)} is NaN from step {min(since):,} on: nothing was learned from there."
    return Advice("Use a lower learning rate or a longer warmup, and set trainer.gradient_clip_val: 1.0.", why)


def _held_out_loss(stages: Sequence[Stage]) -> Advice | None:
    """Too long where the held-out loss has risen from its lowest value, too short where it still falls."""
    before = {0: stages[0].before["val/loss"]} if "val/loss" in stages[0].before else {}
    losses = before | stages[0].curves.get("val/loss", {})
    if stages[0].rounds or len(losses) < 3:  # each round has other pairs than the held-out ones
        return None
    values = list(losses.values())
    of = _title(stages) if len(stages) == 1 else f"{_title(stages)} in {stages[0].folder.parent.name}"
    lowest, spread = min(values), max(values) - min(values)
    if spread and values[-1] - lowest > 0.1 * spread:  # risen by a tenth of all that it has changed
        step = min(losses, key=lambda one: losses[one])
        why = f"The held-out loss of {of} was {lowest:.3g} at step {step:,}, and {values[-1]:.3g} at the end."
        return Advice("Train fewer epochs, or use a lower learning rate.", why)
    if spread and values[-2] - values[-1] > 0.1 * spread:
        why = f"The held-out loss of {of} still fell at the end, from {values[-2]:.3g} to {values[-1]:.3g}."
        return Advice("Train more epochs.", why)
    return None


def _pairs_not_learned(stages: Sequence[Stage]) -> Advice | None:
    ranked, margin = _final(stages, "rewards/accuracy"), _final(stages, "rewards/margin")
    few = stages[0].metrics.steps < FEW_STEPS
    if few or stages[0].rounds or ranked is None or margin is None or ranked >= 0.55:
        return None
    why = f"{_title(stages)} ended with a reward accuracy of {ranked:.2f} (0.5 is chance) and a margin of {margin:.2g}."
    return Advice("Raise the learning rate or the epochs, and look at pairs with lion inspect.", why)


def _rounds_rise(stages: Sequence[Stage]) -> Advice | None:
    scores = [value for value in (stage.of_rounds("score") for stage in stages) if len(value) >= 4]
    if not scores:
        return None
    late, early = (fmean(fmean(value[part]) for value in scores) for part in (slice(-2, None), slice(-4, -2)))
    if late - early < RISE:
        return None
    why = f"The score of sampled answers still rose, from {early:.3f} to {late:.3f} over the last four rounds."
    return Advice(f"Give {_title(stages)} more rounds (trainer.max_epochs).", why)


def _few_signals(stages: Sequence[Stage]) -> Advice | None:
    shares = [stage.of_rounds("prompts_with_signal")[-1] for stage in stages if stage.of_rounds("prompts_with_signal")]
    told = any(finding.symptom == "ties" for stage in stages for finding in stage.findings or [])
    if told or not shares or fmean(shares) >= FEW_SIGNALS:
        return None
    what = "Sample more answers per prompt, at a higher temperature, or score them more finely."
    why = f"In the last round {1 - fmean(shares):.0%} of the prompts had answers of equal scores, which teach nothing."
    return Advice(what, why)


def _cut_off(stages: Sequence[Stage]) -> Advice | None:
    shares = [stage.evaluation["accuracy"].get("unfinished", 0.0) for stage in stages if "accuracy" in stage.evaluation]
    shares += [stage.of_rounds("unfinished")[-1] for stage in stages if stage.of_rounds("unfinished")]
    if not shares or max(shares) <= MANY_CUT:
        return None
    return Advice("Raise max_new_tokens.", f"{max(shares):.0%} of the answers of {_title(stages)} were cut off.")


def _clipped(stages: Sequence[Stage]) -> Advice | None:
    high = _final(stages, "clip/high")
    if high is None or high <= 0.2:
        return None
    why = f"{high:.0%} of the tokens of {_title(stages)} were clipped."
    return Advice("Lower the learning rate or the epochs per round.", why)


def _final(stages: Sequence[Stage], metric: str) -> float | None:
    """Mean over the seeds of a metric at the end: of the last validation, else of the last tenth of the steps."""
    found = []
    for stage in stages:
        held_out, train = stage.values(f"val/{metric}"), stage.values(f"train/{metric}")
        if held_out:
            found.append(held_out[-1])
        elif train:
            found.append(fmean(train[-max(1, len(train) // 10) :]))  # single steps are noisy
    return fmean(found) if found else None


def _title(stages: Sequence[Stage]) -> str:
    return stage_title(stages[0].name)


RULES: tuple[Rule, ...] = (
    _short,
    _held_out_loss,
    _pairs_not_learned,
    _rounds_rise,
    _few_signals,
    _cut_off,
    _clipped,
)
