"""Detectors that look at each optimizer step."""

from __future__ import annotations

import math

from typing_extensions import override

from lion_lightning.callbacks.monitors.health.detector import Change, Detector, Step
from lion_lightning.callbacks.monitors.health.findings import Finding


class NonFinite(Detector):
    """NaN or infinity as the loss or as the norm of the gradient.

    Args:
        most_skipped: Under ``16-mixed``, steps with gradients that are not finite are left out and the scale is
            lowered, which is right; so many of them in a row are not.
    """

    symptom = "NaN or infinity"
    advice = (
        "All weights become NaN with such a step, so go back to a checkpoint of before. It usually is too high a rate, "
        "a warmup that is too short, half precision, or a broken row: lower the rate, set trainer.gradient_clip_val, "
        "look at the rows"
    )
    names_rows = True

    def __init__(self, most_skipped: int = 20) -> None:
        super().__init__()
        self.most_skipped = most_skipped

    @override
    def on_step(self, step: Step) -> Finding | None:
        wrong = [name for name in ("loss", "grad_norm") if not math.isfinite(step.metrics.get(name, 0.0))]
        if not wrong:
            self.memory.clear()
            return None
        if step.is_scaled and len(self.remember("skipped", step.number, self.most_skipped)) < self.most_skipped:
            return None
        name, value = wrong[0], step.metrics[wrong[0]]
        what = {"loss": "the loss", "grad_norm": "the norm of the gradient"}[name]
        return self.finding(step.number, value, math.inf, f"{what} is {value}")


class LikelihoodDisplacement(Detector):
    """Chosen answers that become less likely while the reward margin rises ("likelihood displacement", 2410.08847).

    Compares the mean log-prob per token of chosen answers in the last steps with that of the first steps. Reads
    ``logps/chosen``, ``lengths/chosen`` and ``rewards/margin``.

    Args:
        drop: Nats per token that chosen answers may lose.
        window: Steps of each mean.
    """

    symptom = "likelihood displacement"
    advice = (
        "The loss is met by making the rejected answers still less likely, and probability goes to answers that nobody "
        "chose. Read sampled answers; add ChosenNLLLoss (by WeightedSum), lower the rate, raise beta, or leave out "
        "pairs whose answers are nearly alike"
    )

    def __init__(self, drop: float = 0.4, window: int = 10) -> None:
        super().__init__()
        self.drop, self.window = drop, window

    @override
    def on_step(self, step: Step) -> Finding | None:
        names = ("logps/chosen", "lengths/chosen", "rewards/margin")
        logps, length, margin = (step.metrics.get(name, math.nan) for name in names)
        if not math.isfinite(logps + margin) or not length > 0:  # a step without chosen answers, or another objective
            return None
        for name, value in (("loss per token", -logps / length), ("margin", margin)):
            first = self.memory.setdefault(f"first {name}", [])
            first += [value] * (len(first) < self.window)
            self.remember(name, value, self.window)
        nll, margins = self._change("loss per token"), self._change("margin")
        if nll is None or margins is None or not nll.exceeds(self.drop) or not margins.exceeds(0.0):
            return None
        lost, risen = nll.now - nll.start, margins.now - margins.start
        seen = (
            f"chosen answers have lost {lost:.2f} nats a token since the first steps (limit {self.drop:g}), while the "
            f"reward margin rose by {risen:.2f}"
        )
        return self.finding(step.number, lost, self.drop, seen, severity=lost / self.drop)

    def _change(self, name: str) -> Change | None:
        """From the first steps to the last ones; None before both are known and apart."""
        first, last = self.memory[f"first {name}"], self.memory[name]
        if len(last) < self.window or first == last:
            return None
        return Change.of(first, last)
