"""Which prompts a round asks, wave by wave, and which of them it keeps."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from lion_lightning.rollouts.prompts import DynamicSampling
from lion_lightning.rollouts.prompts.plan import PromptCandidates, RoundPrompts
from lion_lightning.rollouts.rollout import Rollout, has_spread
from lion_lightning.rollouts.waves import SPARE, Waves
from lion_lightning.types import Answer, Prompt

ANSWERS = (Answer("a"), Answer("b"), Answer("c"))


def asked(number: int, **more: Any) -> Rollout:
    return Rollout(Prompt(f"p{number}", (3,)), group=number.to_bytes(16), **more)


def judged(rollout: Rollout, differ: bool) -> Rollout:
    more: dict[str, Any] = {} if rollout.left_out else {"answers": ANSWERS, "usable": (0, 1, 2)}
    return Rollout(
        rollout.prompt,
        group=rollout.group,
        scores=(1.0, 0.0 if differ else 1.0, 1.0),
        left_out=rollout.left_out,
        **more,
    )


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (24, 12),  # 8 are missing, and 24 of 32 had spread: 8 / 0.75 = 10.67, in whole chunks of 4
        (31, 4),  # 1 / (31 / 32) = 1.03
        (32, 0),
        (40, 0),
        (2, 32),  # 30 / (2 / 32) = 480, and a wave has at most the round's prompts
        (0, 32),
    ],
)
def test_a_wave_asks_what_would_give_the_missing_ones(found: int, expected: int) -> None:
    assert DynamicSampling().next_wave(32, found, 32, chunk_size=4) == expected


def test_other_numbers_may_be_wanted_than_asked_first() -> None:
    assert DynamicSampling(groups=8).next_wave(32, 8, 32, chunk_size=4) == 0
    assert DynamicSampling(groups=64).next_wave(32, 16, 32, chunk_size=4) == 32  # 48 / 0.5 = 96


@pytest.mark.parametrize("numbers", [{"groups": 0}, {"most": 0.5}, {"most": float("inf")}, {"most": float("nan")}])
def test_numbers_out_of_range_are_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"OnPolicySampling.dynamic: (groups|most) is .*; give a number"):
        DynamicSampling(**numbers)


def test_what_is_beyond_the_number_wanted_is_left_out_in_the_order_of_asking() -> None:
    prompts = [asked(number, left_out="too long" if number == 1 else "") for number in range(8)]
    waves = Waves(PromptCandidates(prompts, [asked(99, monitor=True)], 4), DynamicSampling(most=2), chunk_size=2)
    first = waves.begin()
    assert [rollout.prompt.text for rollout in first] == ["p0", "p1", "p2", "p3", "p99"]
    # p0 alone has spread, of 4 that were asked: 3 missing ones need 12, and a wave has at most 4.
    scored = [judged(prompts[0], True), judged(prompts[2], False), judged(prompts[3], False), asked(99, monitor=True)]
    assert waves.add(scored) == 4
    second = waves.take(4)
    assert waves.all_asked
    assert waves.add([judged(rollout, True) for rollout in second]) == 0
    assert waves.counts == [[4, 1], [4, 4]]
    done = waves.finish(0)
    assert [rollout.prompt.text for rollout in done if has_spread(rollout)] == ["p0", "p4", "p5", "p6"]
    assert {rollout.prompt.text: rollout.left_out for rollout in done if rollout.left_out} == {
        "p7": SPARE,
        "p1": "too long",
    }
    assert done[-2].usable == (0, 1, 2)  # the file keeps what it is


def test_too_few_are_told_once_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    said = {
        (4, 0): r"answers to 1 of 4 prompts differ in score, where dynamic sampling wants 2; as many as `most` allows",
        (3, 0): "1 of 3 prompts differ in score, where dynamic sampling wants 2; no more are left",
        (2, 2): "1 of 2 prompts differ in score, where dynamic sampling wants 2; no more are left without the 2 that",
    }
    for (count, kept), text in said.items():
        caplog.clear()
        prompts = [asked(number) for number in range(count)]
        waves = Waves(PromptCandidates(prompts, [], 2, kept), DynamicSampling(most=2), chunk_size=1)
        wave = waves.begin()
        while wave:
            scored = [judged(rollout, rollout.prompt.text == "p0") for rollout in wave]
            wave = waves.take(waves.add(scored))
        waves.finish(3)
        (record,) = caplog.records
        assert record.message.startswith("round 3: ")
        assert text in record.message


def test_spread_is_that_of_pairs_where_there_are_any() -> None:
    scores = (1.0, 0.0, 1.0)
    groups = asked(0, answers=ANSWERS, scores=scores, usable=(0, 2))
    assert not has_spread(groups)  # the answer with another score is not usable
    pairs = {"answers": ANSWERS, "scores": scores, "usable": (0, 1, 2)}
    assert has_spread(asked(0, pairs=((0, 2), (0, 1)), **pairs))
    assert not has_spread(asked(0, pairs=((0, 2),), **pairs))  # a tie
    assert not has_spread(asked(0, left_out="the pairing made no pair", **pairs))
    assert not has_spread(asked(0, monitor=True, answers=ANSWERS, scores=scores))


def test_later_rounds_keep_their_prompts() -> None:
    prompts = RoundPrompts([], list(range(20)), 4)
    assert prompts.of_rest(list(range(20)), 0, 3.0, later=2) == (list(range(12)), 0)  # 20 - 2 * 4
    assert prompts.of_rest(list(range(20)), 0, 3.0, later=3) == (list(range(8)), 4)  # 12 are allowed, 12 are kept
    assert prompts.of_rest([7, 8], 3, 3.0, later=3) == ([7, 8], 0)
    with pytest.raises(ValueError, match="no prompts left for round 5"):
        prompts.of_rest([], 5, 3.0, later=0)
