"""Detectors of steps, on streams of numbers written by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import pytest

from lion_lightning.callbacks.monitors.health import Detector, Finding, LikelihoodDisplacement, NonFinite, Step


def found(detector: Detector, stream: Iterable[Mapping[str, float]], is_scaled: bool = False) -> list[Finding]:
    """All findings in a stream of metrics, a step each."""
    seen = [detector.on_step(Step(number, metrics, is_scaled)) for number, metrics in enumerate(stream, 1)]
    return [finding for finding in seen if finding]


@pytest.mark.parametrize(("name", "what"), [("loss", "the loss"), ("grad_norm", "the norm of the gradient")])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_found_in_its_step(name: str, what: str, value: float) -> None:
    (finding,) = found(NonFinite(), [{"loss": 1.0}, {"loss": 1.0, "grad_norm": 2.0} | {name: value}])
    assert (finding.step, finding.seen) == (2, f"{what} is {value}")


def test_steps_that_a_scaler_leaves_out_are_found_when_there_are_too_many_in_a_row() -> None:
    good, skipped = {"loss": 1.0, "grad_norm": 1.0}, {"loss": 1.0, "grad_norm": math.inf}
    assert not found(NonFinite(3), [skipped, skipped, good] * 5, is_scaled=True)
    assert [finding.step for finding in found(NonFinite(3), [good, skipped, skipped, skipped], is_scaled=True)] == [4]


def pair(per_token: float, margin: float) -> dict[str, float]:
    """Metrics of a step whose chosen answers have four tokens."""
    return {"loss": 0.5, "logps/chosen": 4 * per_token, "lengths/chosen": 4.0, "rewards/margin": margin}


def test_chosen_answers_that_fall_while_the_margin_rises_are_found() -> None:
    # Two steps at -1.0 nats a token, then -1.6: the mean of the last two is 0.3 lower at step 3, and 0.6 at step 4.
    stream = [pair(-1.0, 0.0), pair(-1.0, 0.0), pair(-1.6, 1.0), pair(-1.6, 1.0)]
    (finding,) = found(LikelihoodDisplacement(drop=0.5, window=2), stream)
    assert finding.step == 4
    assert finding.value == pytest.approx(0.6)
    assert finding.severity == pytest.approx(1.2)
    assert "lost 0.60 nats a token" in finding.seen
    assert "margin rose by 1.00" in finding.seen


@pytest.mark.parametrize(
    "late",
    [
        pytest.param(pair(-1.6, 0.0), id="the margin stays"),
        pytest.param(pair(-1.2, 1.0), id="chosen answers lose less than the limit"),
        pytest.param(pair(-0.5, 1.0), id="chosen answers become likelier"),
        pytest.param({"loss": 0.5}, id="another objective"),
        pytest.param(pair(math.nan, 1.0), id="no chosen answer in the step"),
    ],
)
def test_other_changes_are_not_displacement(late: Mapping[str, float]) -> None:
    assert not found(LikelihoodDisplacement(drop=0.5, window=2), [pair(-1.0, 0.0)] * 2 + [late] * 5)


def test_noise_as_large_as_the_fall_is_not_displacement() -> None:
    # Means of two: -1.0 and -1.6; each pair of steps spreads by 2, so that the standard error is 1.4 or more.
    noisy = [pair(0.0, 0.0), pair(-2.0, 0.0), pair(-0.6, 1.0), pair(-2.6, 1.0)]
    assert not found(LikelihoodDisplacement(drop=0.5, window=2), noisy)
