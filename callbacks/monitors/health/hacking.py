"""A score that rises while what it stands for falls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean

from typing_extensions import override

from lion_lightning.callbacks.monitors.health.detector import Detector, MeanChange, Sampled, Step
from lion_lightning.callbacks.monitors.health.findings import Finding


class RewardHacking(Detector):
    """A score that rises while what it stands for falls, or the policy leaves its reference far behind.

    Compares each round with the first one. The score has risen, and

    - the share of right answers has fallen, where a verifier says what is right, or a part of the score, where it has
      several;
    - or ``val/rewards/accuracy`` has fallen, the share of held-out pairs that the policy ranks right;
    - or the divergence from the reference (``kl``, or ``log_ratio`` of own answers, over ``lengths``) is large.

    Args:
        fall: How far a part has fallen, in standard deviations over the prompts of the first round.
        accuracy: How far held-out accuracy has fallen.
        kl: Nats per token.
    """

    symptom = "reward hacking"
    advice = (
        "The policy has found what the score likes and you did not mean. Read the best answers with `lion rounds`; fix "
        "the judge or weigh its parts anew, raise beta, or take the checkpoint of before"
    )

    def __init__(self, fall: float = 0.5, accuracy: float = 0.1, kl: float = 1.0) -> None:
        super().__init__()
        self.fall, self.accuracy, self.kl = fall, accuracy, kl

    @override
    def on_step(self, step: Step) -> Finding | None:
        lengths = step.metrics.get("lengths", step.metrics.get("lengths/chosen", 0.0))
        nats = step.metrics.get("kl", step.metrics.get("log_ratio", math.nan))
        divergence = nats / lengths if lengths > 0 else math.nan  # per token
        if math.isfinite(divergence):
            self.remember("kl", divergence, 10)
        return None

    @override
    def on_validation(self, step: int, metrics: Mapping[str, float]) -> Finding | None:
        accuracy = metrics.get("rewards/accuracy", math.nan)
        if math.isfinite(accuracy):
            first = self.memory.get("accuracy", [accuracy])[0]
            self.memory["accuracy"] = [first, accuracy]  # a list, as all of the memory, so that checkpoints keep it
        return None

    @override
    def on_round(self, sampled: Sampled) -> Finding | None:
        score = self._change("score", sampled, (each.sampled_scores for each in sampled.rollouts))
        right = self._change("right", sampled, (each.sampled_right for each in sampled.rollouts))
        parts = {"the share of right answers": right}
        for name in sampled.rollouts[0].by_judge:
            values = (each.by_judge.get(name, ())[: each.num_sampled] for each in sampled.rollouts)
            parts[f"its part {name}"] = self._change(f"part {name}", sampled, values)
        if score is None or score.rise <= 0 or not score.is_sure():
            return None
        falls = [*self._falls(parts), *self._others()]
        if not falls:
            return None
        severity, value, limit, what = max(falls)  # the worst alone is told
        seen = f"the score has risen from {score.start:.3g} to {score.now:.3g} in round {sampled.number}, while {what}"
        return self.finding(sampled.step, value, limit, seen, severity=severity)

    def _change(self, name: str, sampled: Sampled, values: Iterable[Iterable[float]]) -> MeanChange | None:
        """The change of a mean over prompts since the first round."""
        means = []
        for group in values:
            known = [float(value) for value in group if not math.isnan(value)]  # NaN: a judge had no rating
            means.append(fmean(known) if known else math.nan)
        return self.since_first(name, means)

    def _falls(self, parts: Mapping[str, MeanChange | None]) -> list[tuple[float, float, float, str]]:
        """Severity, value, limit and words of each part that has fallen."""
        found = []
        for name, change in parts.items():
            if change is not None and change.rise < 0 and change.is_sure():
                fall = -change.rise / change.spread if change.spread else math.inf
                what = f"{name} fell from {change.start:.3g} to {change.now:.3g}"
                if fall >= self.fall:
                    found.append((fall / self.fall, -change.rise, self.fall * change.spread, what))
        return found

    def _others(self) -> list[tuple[float, float, float, str]]:
        """The same of held-out accuracy and divergence."""
        found = []
        first, now = self.memory.get("accuracy", [0.0, 0.0])
        if first - now >= self.accuracy:
            what = f"held-out pairs are ranked worse, {now:.1%} of them right after {first:.1%}"
            found.append(((first - now) / self.accuracy, first - now, self.accuracy, what))
        divergence = fmean(self.memory.get("kl", [0.0]))
        if divergence >= self.kl:
            what = f"the policy is {divergence:.2f} nats per token from its reference (limit {self.kl:g})"
            found.append((divergence / self.kl, divergence, self.kl, what))
        return found
