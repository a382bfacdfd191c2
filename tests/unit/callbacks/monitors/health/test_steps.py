"""Detectors of steps, on streams of numbers written by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import pytest
import torch

from lion_lightning.callbacks.monitors.health import (
    Detector,
    Finding,
    LengthBias,
    LikelihoodDisplacement,
    LossSpike,
    NonFinite,
    Step,
)


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
    # The first two steps at -1.0 nats per token. Means of the last two: -1.3 at step 4, and -1.6 at step 5.
    stream = [pair(-1.0, 0.0), pair(-1.0, 0.0), pair(-1.0, 1.0), pair(-1.6, 1.0), pair(-1.6, 1.0)]
    (finding,) = found(LikelihoodDisplacement(drop=0.5, window=2), stream)
    assert finding.step == 5
    assert finding.value == pytest.approx(0.6)
    assert finding.severity == pytest.approx(1.2)
    assert "lost 0.60 nats per token" in finding.seen
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
    # Means of two: -1.0 and -1.6; each two spread by 1 to both sides, so that the standard error is the root of 2.
    noisy = [pair(0.0, 0.0), pair(-2.0, 0.0), pair(-0.6, 1.0), pair(-2.6, 1.0)]
    assert not found(LikelihoodDisplacement(drop=0.5, window=2), noisy)


def test_a_loss_far_above_those_before_is_a_spike() -> None:
    # Median 1.0; each step changes the log by log(1.1 / 0.9), so 4 deviations are 4 * 1.4826 * 0.20067 / sqrt(2).
    before = [{"loss": loss} for loss in (0.9, 1.1) * 10]
    assert not found(LossSpike(deviations=4), [*before, {"loss": 2.31}])
    (finding,) = found(LossSpike(deviations=4), [*before, {"loss": 2.6}])
    assert (finding.step, finding.value) == (21, 2.6)
    assert finding.limit == pytest.approx(math.exp(0.84150), rel=1e-4)
    assert finding.severity == pytest.approx(1.6 / (math.exp(0.84150) - 1.0), rel=1e-3)


def test_losses_below_zero_are_compared_as_they_are() -> None:
    # Median -0.9; each step changes it by 0.2, so 4 deviations are 4 * 1.4826 * 0.2 / sqrt(2) = 0.8387.
    before = [{"loss": loss} for loss in (-1.0, -0.8) * 10]
    assert not found(LossSpike(deviations=4), [*before, {"loss": -0.07}])
    (finding,) = found(LossSpike(deviations=4), [*before, {"loss": 0.0}])
    assert finding.limit == pytest.approx(-0.0613, abs=1e-4)


def test_the_zeros_of_a_hinge_that_is_met_are_no_measure() -> None:
    assert not found(LossSpike(), [{"loss": 0.0}] * 20 + [{"loss": 0.3}])


def test_a_few_pairs_a_step_are_no_spikes_and_a_spike_in_a_falling_loss_is_one() -> None:
    margins = torch.randn(300, 3, generator=torch.Generator().manual_seed(0)) * 2 + 3
    losses = -torch.nn.functional.logsigmoid(margins).mean(1)
    assert losses.max() > 10 * losses.median()
    assert not found(LossSpike(), [{"loss": loss} for loss in losses.tolist()])
    falling = [{"loss": 4 * 0.96**step} for step in range(20)]  # 1.84 at the end
    assert len(found(LossSpike(), [*falling, {"loss": 4.0}])) == 1


def test_healthy_runs_have_no_alarm_where_a_deviation_of_few_steps_would_be_too_small() -> None:
    # Sixteen pairs a step spread log losses by about 0.25: over 100 runs of 250 steps, 0.2 alarms are to be expected
    # of a deviation of 50 steps, and 0.7 of one of 20.
    drawn = torch.randn(100, 250, generator=torch.Generator().manual_seed(0)).mul(0.25).exp().tolist()
    runs = [[{"loss": loss} for loss in losses] for losses in drawn]
    assert not any(found(LossSpike(), run) for run in runs)
    assert any(found(LossSpike(window=20), run) for run in runs)


def test_a_rise_that_is_a_small_share_of_the_loss_is_no_spike_though_losses_hardly_varied() -> None:
    steady = [{"loss": 1.0}] * 30
    assert not found(LossSpike(share=0.5), [*steady, {"loss": 1.49}])
    assert len(found(LossSpike(share=0.5), [*steady, {"loss": 1.51}])) == 1


def test_what_is_not_finite_is_no_spike_and_does_not_count_as_a_loss() -> None:
    assert not found(LossSpike(), [{"loss": 1.0}] * 9 + [{"loss": math.nan}] * 10 + [{"loss": 9.0}])


def test_the_loss_of_a_policy_gradient_has_no_spikes() -> None:
    assert not found(LossSpike(), [{"loss": 0.01, "ratio": 1.0}] * 20 + [{"loss": 5.0, "ratio": 1.0}])


def lengths(chosen: float, rejected: float) -> dict[str, float]:
    return {"loss": 0.5, "lengths/chosen": chosen, "lengths/rejected": rejected}


def test_lengths_that_tell_chosen_from_rejected_are_found_once_there_are_enough_steps() -> None:
    # Means over three steps: 12 tokens and 6.
    (finding,) = found(LengthBias(ratio=1.5, least=3), [lengths(10, 5), lengths(14, 7), lengths(12, 6)])
    assert (finding.step, finding.value, finding.severity) == (3, 2.0, 2.0)
    assert "chosen answers have 12.0 tokens on average, rejected ones 6.0" in finding.seen
    assert "max_length_ratio" not in finding.advice  # labeled answers and rounds have no such filter
    assert len(found(LengthBias(ratio=1.5, least=3), [lengths(5, 10)] * 3)) == 1


def test_the_filter_of_pairs_by_length_is_advised_where_the_data_module_has_it() -> None:
    finding = LengthBias(ratio=1.5, least=1).on_step(Step(1, lengths(10, 5), has_length_filter=True))
    assert finding is not None
    assert finding.advice.endswith("; data.max_length_ratio leaves out such pairs")


def test_lengths_that_differ_less_than_the_limit_are_no_bias() -> None:
    assert not found(LengthBias(ratio=1.5, least=3), [lengths(10, 5), lengths(5, 10), lengths(9, 8)])  # 8.0 and 7.7
    assert not found(LengthBias(ratio=1.5, least=3), [lengths(10, math.nan)] * 5)  # desirable answers alone
