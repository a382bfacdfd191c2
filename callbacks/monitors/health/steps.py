"""Detectors that look at each optimizer step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from typing_extensions import override

from lion_lightning.callbacks.monitors.health.detector import Detector, Step
from lion_lightning.callbacks.monitors.health.findings import Finding

NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median deviation."""


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


class LossSpike(Detector):
    """A loss far above those of the steps before. The loss of a policy gradient (``ratio``) says nothing of this kind.

    How much losses vary is read from one step to the next, so that a loss that falls does not seem to vary much, and
    in logs where they are positive: of a few pairs a step, the loss is now and then a hundred times the median.

    Args:
        deviations: How far above the median of the ``recent`` steps, in standard deviations (estimated from the median
            change between two steps, which a few large losses do not change).
        share: How far above the median at least, as a share of it.
        window: Steps that the deviation is of, as many as are there: of 20, it is now and then a third of what it
            should be, and one healthy run in 150 has an alarm.
        recent: Steps that the median is of; they have to be there.
    """

    symptom = "loss spike"
    advice = (
        "Usually a row unlike the others (of another language, broken, very long) or too high a rate. Look at the "
        "rows; if the loss does not come back, go back to a checkpoint and lower the rate or "
        "trainer.gradient_clip_val"
    )
    names_rows = True

    def __init__(self, deviations: float = 8.0, share: float = 0.5, window: int = 50, recent: int = 10) -> None:
        super().__init__()
        self.deviations, self.share, self.window, self.recent = deviations, share, window, recent

    @override
    def on_step(self, step: Step) -> Finding | None:
        loss, before = step.metrics["loss"], [*self.memory.get("losses", [])]
        if not math.isfinite(loss) or "ratio" in step.metrics:
            return None
        self.remember("losses", loss, self.window)
        if len(before) < self.recent:
            return None
        last = before[-self.recent :]
        middle = median(last)
        limit = max(middle + self.share * abs(middle), self._most(middle, before))
        if loss <= limit or limit == middle:  # zeros, as of a hinge that is met: anything would be far above
            return None
        seen = f"the loss is {loss:.4g}, after a median of {middle:.4g} in the {len(last)} steps before"
        return self.finding(step.number, loss, limit, seen, severity=(loss - middle) / (limit - middle))

    def _most(self, middle: float, before: Sequence[float]) -> float:
        """The loss that is so many deviations above the median."""
        is_positive = min(before) > 0
        scaled = [math.log(loss) for loss in before] if is_positive else before
        change = median(abs(later - earlier) for earlier, later in pairwise(scaled))
        above = self.deviations * NORMAL * change / math.sqrt(2)  # a difference of two varies by the root of 2 more
        return middle * math.exp(min(above, 100.0)) if is_positive else middle + above


class LikelihoodDisplacement(Detector):
    """Chosen answers that become less likely while the reward margin rises ("likelihood displacement", 2410.08847).

    Compares the mean log-prob per token of chosen answers in the last steps with that of the first steps. Reads
    ``logps/chosen``, ``lengths/chosen`` and ``rewards/margin``.

    Args:
        drop: Nats per token that chosen answers may lose; healthy runs of the demo lose up to 0.25.
        window: Steps of each mean.
    """

    symptom = "likelihood displacement"
    advice = (
        "The loss is met by making the rejected answers still less likely, and probability goes to answers that nobody "
        "chose. Read sampled answers; add ChosenNLLLoss (by WeightedSum), or more weight of it, lower the rate, raise "
        "beta, or leave out pairs whose answers are nearly alike"
    )

    def __init__(self, drop: float = 0.5, window: int = 10) -> None:
        super().__init__()
        self.drop, self.window = drop, window

    @override
    def on_step(self, step: Step) -> Finding | None:
        names = ("logps/chosen", "lengths/chosen", "rewards/margin")
        total, length, reward = (step.metrics.get(name, math.nan) for name in names)
        if not math.isfinite(total + reward) or not length > 0:  # no chosen answer in this step, or none ever
            return None
        logp = self.since_start("logp per token", total / length, self.window)
        margin = self.since_start("margin", reward, self.window)
        if logp is None or margin is None or margin.rise <= 0 or not margin.is_sure():
            return None
        lost = -logp.rise
        if lost < self.drop or not logp.is_sure():
            return None
        seen = (
            f"chosen answers have lost {lost:.2f} nats per token since the first steps (limit {self.drop:g}), while "
            f"the reward margin rose by {margin.rise:.2f}"
        )
        return self.finding(step.number, lost, self.drop, seen, severity=lost / self.drop)


class LengthBias(Detector):
    """Chosen answers that are much longer, or shorter, than the rejected ones, so that length alone tells them apart.

    Compares the mean tokens over all steps. Reads ``lengths/chosen`` and ``lengths/rejected``.

    Args:
        ratio: Mean tokens of the longer kind over those of the shorter.
        least: Steps before anything is said.
    """

    symptom = "length bias"
    advice = (
        "The policy learns length before anything else. Balance the data, or use a loss that divides by length; watch "
        "the length of sampled answers"
    )

    def __init__(self, ratio: float = 1.5, least: int = 20) -> None:
        super().__init__()
        self.ratio, self.least = ratio, least

    @override
    def on_step(self, step: Step) -> Finding | None:
        lengths = [step.metrics.get(f"lengths/{kind}", math.nan) for kind in ("chosen", "rejected")]
        if not all(length > 0 for length in lengths):  # NaN: no answer of the kind in this step
            return None
        totals = self.memory.setdefault("totals", [0.0, 0.0, 0.0])
        totals[:] = [totals[0] + 1, totals[1] + lengths[0], totals[2] + lengths[1]]
        steps, chosen, rejected = totals[0], totals[1] / totals[0], totals[2] / totals[0]
        ratio = max(chosen, rejected) / min(chosen, rejected)
        if steps < self.least or ratio < self.ratio:
            return None
        seen = (
            f"chosen answers have {chosen:.1f} tokens on average, rejected ones {rejected:.1f} (limit {self.ratio:g} "
            "times)"
        )
        finding = self.finding(step.number, ratio, self.ratio, seen, severity=(ratio - 1) / (self.ratio - 1))
        if step.has_length_filter:
            finding = finding._replace(advice=f"{self.advice}; data.max_length_ratio leaves out such pairs")
        return finding
