"""Differences of stages: paired by prompt or by seed, in words, and where they are losses."""

from __future__ import annotations

from math import isnan, nan
from pathlib import Path

import pytest

from lion_lightning.tools.evaluate.intervals import Interval, bootstrap
from lion_lightning.tools.report.answers import Scored, side_by_side
from lion_lightning.tools.report.logs import ChainLogs, read_run, read_stage
from lion_lightning.tools.report.scores import Scores, ScoreSlice, changes, declines, scores_of, verdict
from tests.unit.tools.report.runs import curve, evaluate, finish

SFT = [0.0, 0.0, 0.5, 1.0, 1.0, 0.0, 0.0, 1.0, 0.5, 0.5]
DPO = [1.0, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.0]
KINDS = ["sort"] * 4 + ["larger"] * 6


def scored(folder: Path, **stages: list[float]) -> Scores:
    """Scores of a run of one seed with such stages, all over the same prompts."""
    for name, scores in stages.items():
        evaluate(folder / name, scores, KINDS[: len(scores)])
        finish(folder / name)
    chain = ChainLogs("run", [read_stage(folder / name) for name in stages])
    found = scores_of([chain])
    assert found is not None
    return found


def test_one_seed_is_compared_prompt_by_prompt(tmp_path: Path) -> None:
    scores = scored(tmp_path, sft=SFT, dpo=DPO)
    assert (scores.measure, scores.over) == ("mean score", "the prompts of one seed")
    # by hand: 1, 1, 0.5, 0, -0.5, 1, 1, 0, 0.5, -0.5
    gain = scores.gain("dpo", "sft")
    assert gain == bootstrap([1, 1, 0.5, 0, -0.5, 1, 1, 0, 0.5, -0.5])
    assert gain.estimate == pytest.approx(0.4)
    assert (
        gain.high - gain.low < 0.9
    )  # 10 unpaired scores with these deviations, 0.41 and 0.34, would have 0.65 and more


def test_prompts_are_matched_by_their_question_whatever_their_order(tmp_path: Path) -> None:
    scores = scored(tmp_path, sft=SFT, dpo=DPO)
    scores.answers["dpo"][0].reverse()
    gain, again = scores.gain("dpo", "sft"), scores.gain("sft", "dpo")
    assert gain is not None
    assert again is not None
    assert gain.estimate == pytest.approx(0.4)
    assert again.estimate == pytest.approx(-0.4)
    assert changes(scores, "dpo", "sft") == (6, 2, 2)


def test_seeds_are_compared_seed_by_seed_with_students_t(tmp_path: Path) -> None:
    # gains 0.1, 0.2, 0.3: mean 0.2, deviation 0.1; t is 4.3027 with two degrees of freedom
    for seed, ones in ((0, (4, 5)), (2, (5, 7)), (10, (6, 9))):
        for name, count in zip(("sft", "dpo"), ones, strict=True):
            folder = tmp_path / f"seed-{seed}" / name
            evaluate(folder, [1.0] * count + [0.0] * (10 - count), ["sort", "larger"] * 5)
            finish(folder)
    chains = read_run(tmp_path)
    assert [chain.name for chain in chains] == ["seed-0", "seed-2", "seed-10"]  # by number
    scores = scores_of(chains)
    assert scores is not None
    assert (scores.measure, scores.seeds, scores.over) == ("accuracy", 3, "3 seeds")
    gain = scores.gain("dpo", "sft")
    assert gain is not None
    assert gain.estimate == pytest.approx(0.2)
    assert gain.high - gain.estimate == pytest.approx(4.3027 * 0.1 / 3**0.5, abs=1e-4)
    # of the first 5 "sort" answers, at even places, 2, 3 and 3 are right
    assert scores.of("sft", ScoreSlice("kind", "sort")).estimate == pytest.approx((2 + 3 + 3) / 15)


def test_only_stages_that_all_seeds_have_evaluated_are_compared(tmp_path: Path) -> None:
    for seed in (0, 1):
        for name in ("sft", "dpo"):
            finish(tmp_path / f"seed-{seed}" / name)
            if (seed, name) != (1, "dpo"):
                evaluate(tmp_path / f"seed-{seed}" / name, [1.0, 0.0])
    scores = scores_of(read_run(tmp_path))
    assert scores is not None
    assert scores.stages == ["sft"]
    assert scores_of(read_run(tmp_path / "seed-1" / "dpo")) is None


@pytest.mark.parametrize(
    ("gain", "kind", "text"),
    [
        (Interval(0.16, 0.12, 0.21), "better", "better by 0.160 [0.120, 0.210]"),
        (Interval(-0.16, -0.21, -0.12), "worse", "worse by 0.160 [0.120, 0.210]"),
        (Interval(0.01, -0.02, 0.05), "undecided", "not decided: +0.010 [-0.020, +0.050]"),
        (Interval(0.0, 0.0, 0.0), "undecided", "not decided: +0.000 [+0.000, +0.000]"),
        (Interval(1.0, 1.0, 1.0), "better", "better by 1.000 [1.000, 1.000]"),
        (Interval(0.2, nan, nan), "unknown", "+0.200, without an interval: not decided"),
        (None, "unknown", "not measured"),
    ],
)
def test_a_difference_in_words(gain: Interval | None, kind: str, text: str) -> None:
    assert verdict(gain) == (kind, text)


def test_five_prompts_decide_nothing(tmp_path: Path) -> None:
    gain = scored(tmp_path, sft=[0.0] * 5, dpo=[1.0] * 5).gain("dpo", "sft")
    assert gain is not None
    assert gain.estimate == 1
    assert isnan(gain.low)


def test_kinds_and_parts_that_got_worse_are_named_even_where_the_whole_got_better(tmp_path: Path) -> None:
    length = 40
    kinds = ["sort"] * 30 + ["larger"] * 10
    sft, dpo = [0.0] * 30 + [1.0] * 10, [1.0] * 30 + [0.0, 1.0] * 5  # "larger" falls by a half
    evaluate(tmp_path / "sft", sft, kinds, {"form": [0.5] * length, "right": sft})
    evaluate(tmp_path / "dpo", dpo, kinds, {"form": [0.0, 0.25] * 20, "right": dpo})  # "form" falls by 0.375
    scores = scores_of([ChainLogs("run", [read_stage(tmp_path / name) for name in ("sft", "dpo")])])
    assert scores is not None
    assert [part.name for part in scores.parts] == ["form", "right"]
    found, count = declines(scores)
    assert count == 1 + 2 + 2  # all prompts, two kinds, two parts
    assert [one.what for one in found] == ["prompts of the kind larger", "the part form of the score"]
    assert found[0].verdict.text.startswith("worse by 0.500 [")
    assert found[1].verdict.text.startswith("worse by 0.375 [")


def test_of_three_stages_the_last_is_compared_with_the_first_too(tmp_path: Path) -> None:
    scores = scored(tmp_path, sft=SFT, dpo=DPO, online_dpo=DPO)
    assert scores.steps() == [("dpo", "sft"), ("online_dpo", "dpo"), ("online_dpo", "sft")]


# --- answers


def answers(*scores: float) -> list[Scored]:
    return [Scored(f"q{number}", f"a{score}", score) for number, score in enumerate(scores)]


def test_answers_are_chosen_from_gains_losses_and_the_rest() -> None:
    better, worse, same = side_by_side([answers(0, 0, 1, 1, 0), answers(1, 1, 0, 1, 0)], each=1)
    assert [(one.name, one.size) for one in (better, worse, same)] == [
        ("got better", 2),
        ("got worse", 1),
        ("stayed the same", 2),
    ]
    assert [one.question for one in worse.shown[0]] == ["q2", "q2"]
    assert [one.score for one in worse.shown[0]] == [1, 0]
    assert len(better.shown) == len(same.shown) == 1


def test_which_prompts_are_shown_does_not_depend_on_the_answers() -> None:
    many = 60
    first, _, _ = side_by_side([answers(*[0.0] * many), answers(*[1.0] * many)], each=5)
    again, _, _ = side_by_side([answers(*[0.2] * many), answers(*[0.9] * many)], each=5)
    names = [row[0].question for row in first.shown]
    assert names == [row[0].question for row in again.shown]
    assert names != [f"q{number}" for number in range(5)]  # nor is it the file's order, which may be by kind


def test_a_single_stage_shows_answers_above_and_below_its_mean() -> None:
    high, low = side_by_side([answers(1, 0.5, 0)])
    assert (high.size, low.size) == (2, 1)


def test_answers_to_prompts_that_repeat_are_matched_in_order() -> None:
    twice = [Scored("q", "a", 0.0), Scored("q", "b", 1.0)]
    better, worse, same = side_by_side([twice, twice])
    assert (better.size, worse.size, same.size) == (0, 0, 2)


def test_where_a_resumed_run_logged_a_step_again_the_later_value_holds(tmp_path: Path) -> None:
    curve(tmp_path, 2, train__loss=[3.0, 2.5])
    curve(tmp_path, 10, train__loss=[4.0])
    assert read_stage(tmp_path).curves == {"train/loss": {9: 4.0, 19: 2.5}}
