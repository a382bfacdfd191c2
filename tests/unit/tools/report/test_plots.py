"""Panels and their drawing as SVG: what is shown, where it stands, and that no plot needs its colors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lion_lightning.tools.evaluate.intervals import Interval
from lion_lightning.tools.report.logs import ChainLogs, read_run, read_stage
from lion_lightning.tools.report.plots.overview import overview
from lion_lightning.tools.report.plots.panels import (
    POLICY_GRADIENT,
    Panel,
    PlotLine,
    loss_panels,
    round_panels,
    smooth,
    step_panels,
    thinned,
    ticks,
)
from lion_lightning.tools.report.plots.svg import LEFT, RIGHT, WIDTH, Bar, Scale, interval_plot, line_plot
from tests.unit.tools.report.runs import curve, finish, write


def test_a_running_mean_weighs_the_newest_most_and_the_first_alone() -> None:
    # (0.8 * 1 + 2) / 1.8, then (0.64 * 1 + 0.8 * 2 + 4) / 2.44
    assert smooth({0: 1.0, 1: 2.0, 2: 4.0}) == pytest.approx({0: 1.0, 1: 2.8 / 1.8, 2: 6.24 / 2.44})


def test_a_long_line_is_thinned_and_keeps_its_ends() -> None:
    points = [(float(number), 0.0) for number in range(101)]
    assert [x for x, _ in thinned(points, 5)] == [0, 25, 50, 75, 100]
    assert thinned(points[:3], 5) == points[:3]


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0.0, 1.0, [0.0, 0.5, 1.0]),
        (0.31, 0.69, [0.4, 0.5, 0.6]),
        (-6.2, 0.4, [-6.0, -4.0, -2.0, 0.0]),
        (0.0, 513.0, [0.0, 200.0, 400.0]),
        (2.0, 2.0, [2.0]),
    ],
)
def test_ticks_are_round_numbers_within_the_axis(low: float, high: float, found: list[float]) -> None:
    assert ticks(low, high) == found


def test_a_scale_maps_its_ends_to_its_places() -> None:
    scale = Scale(1.0, 3.0, 100.0, 0.0)  # upwards, as SVG counts from the top
    assert (scale(1.0), scale(2.0), scale(3.0)) == (100.0, 50.0, 0.0)


def test_a_plot_says_its_lines_in_words_and_spans_its_axes() -> None:
    drawn = line_plot(
        Panel("loss", "step", [PlotLine("held < out", [(0, 2.0), (10, 1.0)], 7, dash=1, dots=True)], "Falls.")
    )
    assert 'role="img" aria-label="loss over step: held &lt; out from 2 to 1"' in drawn
    (places,) = re.findall(r'<polyline points="([^"]*)" class="s1 d1">', drawn)  # the eighth color is the second again
    xs = [float(point.split(",")[0]) for point in places.split()]
    assert xs == [LEFT, WIDTH - RIGHT]
    assert drawn.count("<circle") == 2
    assert "<li><svg" in drawn
    assert "held &lt; out from 2 to 1</li>" in drawn


def test_a_single_point_and_a_flat_line_are_drawn() -> None:
    assert "<circle" in line_plot(Panel("a", "step", [PlotLine("x", [(3, 2.0)], 0)]))
    flat = line_plot(Panel("a", "step", [PlotLine("x", [(0, 0.0), (1, 0.0)], 0)]))
    assert "NaN" not in flat
    assert 'aria-label="a over step: x from 0 to 0"' in flat


def test_intervals_are_drawn_within_the_axis() -> None:
    drawn = interval_plot("By kind", [("a kind of a long name", [Bar("SFT", Interval(0.5, -0.2, 1.4), 0)])], 0.0, 1.0)
    (ends,) = re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)" y1="10" y2="10" class="s0">', drawn)
    assert [float(end) for end in ends] == [96.0, WIDTH - RIGHT]
    assert 'aria-label="By kind. a kind of a long name: SFT 0.50"' in drawn
    assert "a kind of a lon…" in drawn


def names(panels: list[Panel]) -> dict[str, list[str]]:
    return {panel.title: [line.name for line in panel.lines if line.name] for panel in panels}


def test_a_policy_gradient_run_shows_what_it_logged_and_nothing_else(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = tmp_path / f"seed-{seed}" / "grpo"
        curve(folder, train__ratio=[1.0], train__staleness=[0.0, 5.0], train__clip__low=[0.1], train__clip__high=[0.2])
        metrics = {"pass_at_1": 0.25, "pass_at_4": 0.5, "reward/a$b": 1.0, "reward/Length": 0.1, "win_rate": None}
        summary = {"metrics": {f"on_policy/{name}": value for name, value in metrics.items()}}
        write(folder / "rounds" / "round-0000.json", summary)
    chains = read_run(tmp_path)
    steps = step_panels(chains, POLICY_GRADIENT)
    assert names([*steps, *round_panels(chains)]) == {
        "share of tokens that are clipped": ["GRPO high", "GRPO low"],
        "ratio to the policy that sampled": ["GRPO"],
        "steps since the answers were sampled": ["GRPO"],
        "parts of the score": ["GRPO a$b", "GRPO Length"],
        "pass@k on monitor prompts": ["GRPO k = 1", "GRPO k = 4"],
    }
    (staleness,) = (panel for panel in steps if panel.title.startswith("steps since"))
    assert [[y for _, y in line.points] for line in staleness.lines] == [[0.0, 5.0]] * 2  # not smoothed; two seeds


def test_losses_begin_with_the_validation_before_the_first_step(tmp_path: Path) -> None:
    curve(tmp_path, train__loss=[2.0], val__loss=[1.5])
    write(tmp_path / "before_after.json", {"before": {"metrics": {"val/loss": 3.0}}})
    (panel,) = loss_panels([ChainLogs("run", [read_stage(tmp_path)])])
    assert [line.points for line in panel.lines] == [[(9, 2.0)], [(0, 3.0), (9, 1.5)]]


def test_infinite_values_are_no_points(tmp_path: Path) -> None:
    curve(tmp_path, train__rewards__margin=[float("inf"), 1.0])
    curve(tmp_path, 1, train__kl=[float("nan")])
    panels = step_panels([ChainLogs("run", [read_stage(tmp_path)])], POLICY_GRADIENT)
    assert panels == []


def test_nothing_logged_makes_no_picture(tmp_path: Path) -> None:
    finish(tmp_path)
    assert overview([ChainLogs("run", [read_stage(tmp_path)])], None) is None
