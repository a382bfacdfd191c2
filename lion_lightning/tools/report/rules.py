"""Rules about a stage: what its metrics say should be done about it."""

from __future__ import annotations

import math
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
    return Advice(
        what, f"{_title(stages)} made {progress.steps}: its warmup and a few examples decide what it learned."
    )


def _diverged(stages: Sequence[Stage]) -> Advice | None:
    if all(math.isfinite(value) for stage in stages for value in stage.values("train/loss")):
        return None
    return Advice("Lower the learning rate, or clip gradients.", f"The loss of {_title(stages)} was infinite.")


def _held_out_loss(stages: Sequence[Stage]) -> Advice | None:
    """Too long where the held-out loss has risen from its lowest value, too short where it still falls."""
    losses = stages[0].curves.get("val/loss", {})
    if stages[0].rounds or len(losses) < 3:
        return None
    values = list(losses.values())
    lowest, spread = min(values), max(values) - min(values)
    if spread and values[-1] - lowest > 0.1 * spread:
        step = min(losses, key=lambda one: losses[one])
        why = (
            f"The held-out loss of {_title(stages)} was {lowest:.3g} at step {step:,}, and {values[-1]:.3g} at the end."
        )
        return Advice("Train fewer epochs, or use a lower learning rate.", why)
    if spread and values[-2] - values[-1] > 0.1 * spread:
        why = f"The held-out loss of {_title(stages)} still fell at the end, from {values[-2]:.3g} to {values[-1]:.3g}."
        return Advice("Train more epochs.", why)
    return None


def _pairs_not_learned(stages: Sequence[Stage]) -> Advice | None:
    ranked, margin = _final(stages, "rewards/accuracy"), _final(stages, "rewards/margin")
    if stages[0].rounds or ranked is None or margin is None or ranked >= 0.55:
        return None
    why = f"{_title(stages)} ended with a reward accuracy of {ranked:.2f} (0.5 is chance) and a margin of {margin:.2g}."
    return Advice("Raise the learning rate or the epochs, and look at pairs with lion inspect.", why)


def _chosen_fall(stages: Sequence[Stage]) -> Advice | None:
    chosen, margin = _final(stages, "rewards/chosen"), _final(stages, "rewards/margin")
    if chosen is None or margin is None or "train/log_ratio" not in stages[0].curves or chosen >= -0.1 or margin <= 0:
        return None
    why = f"In {_title(stages)} chosen answers, too, became less likely than under the reference (reward {chosen:.2f})."
    return Advice("Add ChosenNLLLoss to the loss, or raise beta.", why)


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
    if not shares or fmean(shares) >= FEW_SIGNALS:
        return None
    what = "Sample more answers a prompt, at a higher temperature, or score them more finely."
    return Advice(
        what,
        f"In the last round {1 - fmean(shares):.0%} of the prompts had answers of equal scores, which teach nothing.",
    )


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
    return Advice(
        "Lower the learning rate or the epochs a round.", f"{high:.0%} of the tokens of {_title(stages)} were clipped."
    )


def _entropy_gone(stages: Sequence[Stage]) -> Advice | None:
    curve = stages[0].values("train/entropy")
    if len(curve) < 4 or curve[-1] > 0.1 * curve[0]:
        return None
    fall = f"from {curve[0]:.2g} to {curve[-1]:.2g} nats a token"
    why = f"The entropy of {_title(stages)} fell {fall}: all answers become the same."
    return Advice("Stop earlier, or add a KL penalty or an entropy bonus.", why)


def _final(stages: Sequence[Stage], metric: str) -> float | None:
    """Mean over the seeds of a metric at the end: of the last validation, else of the last tenth of the steps."""
    found = []
    for stage in stages:
        held_out, train = stage.values(f"val/{metric}"), stage.values(f"train/{metric}")
        if held_out:
            found.append(held_out[-1])
        elif train:
            found.append(fmean(train[-max(1, len(train) // 10) :]))
    return fmean(found) if found else None


def _title(stages: Sequence[Stage]) -> str:
    return stage_title(stages[0].name)


RULES: tuple[Rule, ...] = (
    _short,
    _diverged,
    _held_out_loss,
    _pairs_not_learned,
    _chosen_fall,
    _rounds_rise,
    _few_signals,
    _cut_off,
    _clipped,
    _entropy_gone,
)
