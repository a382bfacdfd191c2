"""Reward shaping: the papers' values, its parts in a round, and what is refused."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest

from lion_lightning.callbacks import OnPolicySampling
from lion_lightning.judges import ExactMatch, Length, VerifierJudge, WeightedJudge
from lion_lightning.rollouts.checks import warn_of_misfits
from lion_lightning.rollouts.rewards import RewardShaping, Scoring, SoftOverlongPunishment, UnfinishedScore
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.sampling.base import SamplingSettings
from lion_lightning.sampling.transformers import TransformersSampler
from lion_lightning.types import Answer, Prompt

PROMPT = Prompt("<q>1+1?", (5,), row={"answer": "2"}, where="f:1")


def answer(tokens: int, reason: str = "stop", text: str = "2") -> Answer:
    return Answer(text, reason, (7,) * tokens)


def test_an_unfinished_answer_scores_a_fixed_number_right_or_wrong() -> None:
    """TÜLU 3: -10 in place of 10 or 0; 3.1: 0."""
    for score in (10.0, 0.0):
        assert UnfinishedScore().shape(answer(4, "length"), score) == -10
        assert UnfinishedScore(0).shape(answer(4, "length"), score) == 0
        assert UnfinishedScore().shape(answer(4), score) == score


@pytest.mark.parametrize(
    ("tokens", "punished"),
    [(1, 0.0), (16384, 0.0), (16385, -1 / 4096), (18432, -0.5), (20479, -4095 / 4096), (20480, -1.0), (20481, -1.0)],
)
def test_dapos_punishment_of_long_answers(tokens: int, punished: float) -> None:
    """Eq. 13 with the paper's numbers, from its three cases."""
    shaping = SoftOverlongPunishment(20480, 4096)
    assert shaping.shape(answer(tokens), 1.0) == 1 + punished
    assert SoftOverlongPunishment(20480, 4096, weight=2.0).shape(answer(tokens), 0.0) == 2 * punished


def test_what_each_shaping_adds_is_a_part_of_its_own() -> None:
    """Three answers, right and wrong, of 6, 9 and 10 tokens; the last was cut off."""
    judge = WeightedJudge([VerifierJudge(ExactMatch(), 10.0), VerifierJudge(Length(1, 2))], names=["correct", "brief"])
    answers = (answer(6), answer(9, text="3 is it not"), answer(10, "length"))
    scoring = Scoring(judge, [UnfinishedScore(-10), SoftOverlongPunishment(10, 4)])
    (made,) = scoring.score([Rollout(PROMPT, answers)])
    assert made.by_judge == {
        "correct": (10, 0, 10),
        "brief": (1, 0, 1),
        "UnfinishedScore": (0, 0, -21),
        "SoftOverlongPunishment": (0, -0.75, -1),
    }
    assert made.scores == (11, -0.75, -11)
    assert made.right == (True, False, True)  # by the first verifier, whatever the form and the length


def test_a_judge_that_does_not_say_what_is_right() -> None:
    class Rating:
        def score(self, prompts: Any, answers: Any) -> Any:
            return [[float(len(text)) for text in texts] for texts in answers]

    (made,) = Scoring(Rating()).score([Rollout(PROMPT, (answer(1), answer(1, text="four")))])
    assert (made.scores, made.right) == ((1.0, 4.0), ())
    weighted = WeightedJudge([Rating(), VerifierJudge(Length(1, 1), reward=-1.0)])  # a punishment: what it finds is bad
    assert Scoring(weighted).score([made])[0].right == ()
    Rating.right_from = 3.0  # type: ignore[attr-defined]
    assert Scoring(Rating()).score([made])[0].right == (False, True)
    assert Scoring(WeightedJudge([VerifierJudge(ExactMatch()), Rating()])).score([made])[0].right == (True, False)


class Bonus(RewardShaping):
    def __init__(self, bonus: Any) -> None:
        self.bonus = bonus

    def shape(self, answer: Answer, score: float) -> Any:
        return None if self.bonus is None else score + self.bonus


def test_a_shaped_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Bonus made \(nan,\) of the scores \(1.0,\) of f:1; return finite numbers"):
        Scoring(VerifierJudge(ExactMatch()), [Bonus(math.nan)]).score([Rollout(PROMPT, (answer(1),))])
    with pytest.raises(ValueError, match=r"Bonus made \(None,\) of the scores"):
        Scoring(VerifierJudge(ExactMatch()), [Bonus(None)]).score([Rollout(PROMPT, (answer(1),))])
    with pytest.raises(ValueError, match=r"f:1: Bonus failed \(TypeError: .*\); fix the shaping and rerun"):
        Scoring(VerifierJudge(ExactMatch()), [Bonus("1")]).score([Rollout(PROMPT, (answer(1),))])
    judge = WeightedJudge([VerifierJudge(ExactMatch())], names=["Bonus"])
    with pytest.raises(ValueError, match="a judge and a shaping are both called Bonus; change `names` of Weighted"):
        Scoring(judge, [Bonus(1.0)]).score([Rollout(PROMPT, (answer(1),))])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UnfinishedScore(math.inf), "UnfinishedScore: score is inf; give a finite number"),
        (lambda: UnfinishedScore(math.nan), "UnfinishedScore: score is nan; give a finite number"),
        (lambda: SoftOverlongPunishment(8, 9), "buffer is 9 and max_tokens 8; give 1 <= buffer <= max_tokens"),
        (lambda: SoftOverlongPunishment(8, 0), "buffer is 0 and max_tokens 8; give 1 <= buffer <= max_tokens"),
        (lambda: SoftOverlongPunishment(8, 4, -1.0), "weight is -1.0; give a number above 0"),
        (lambda: SoftOverlongPunishment(8, 4, math.nan), "weight is nan; give a number above 0"),
        (lambda: sampling([Bonus(1.0), Bonus(2.0)]), "shaping has 2 of Bonus; give one, or subclass it"),
        (lambda: sampling([], 0), "monitor_samples is 0; give at least 1"),
        (lambda: sampling([], 2, monitor_prompts=0), "is 2, and monitor_prompts 0; give some prompts, or leave"),
    ],
)
def test_numbers_that_make_no_sense(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def sampling(shaping: list[RewardShaping], monitor_samples: int = 1, **options: Any) -> OnPolicySampling:
    sampler, judge = TransformersSampler(SamplingSettings(max_new_tokens=10)), VerifierJudge(ExactMatch())
    return OnPolicySampling(sampler, judge, shaping=shaping, monitor_samples=monitor_samples, **options)


@pytest.mark.parametrize(
    ("shaping", "keep_unfinished", "warned"),
    [
        (SoftOverlongPunishment(10, 4), False, None),
        (SoftOverlongPunishment(8, 4), True, "max_tokens is 8, but the sampler's max_new_tokens is 10; set them alike"),
        (UnfinishedScore(), True, None),
        (UnfinishedScore(), False, "no answer that was cut off is trained on, .*; set keep_unfinished: true"),
        (Bonus(1.0), False, None),
    ],
)
def test_shaping_that_does_not_fit_the_sampler_is_said(
    shaping: RewardShaping, keep_unfinished: bool, warned: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "lion_lightning")
    warn_of_misfits([shaping], TransformersSampler(SamplingSettings(max_new_tokens=10)), keep_unfinished)
    assert bool(caplog.text) == bool(warned)
    if warned:
        assert any(record.getMessage().startswith(type(shaping).__name__) for record in caplog.records)
        caplog.clear()
        warn_of_misfits([shaping], object(), True)  # type: ignore[arg-type]  # a sampler that does not say its limit
        assert not caplog.text


SHAPINGS: list[list[RewardShaping]] = [[], [UnfinishedScore()], [UnfinishedScore(0)]]


def test_another_shaping_makes_another_round() -> None:
    """As another judge does: what decides a round is in its identity."""
    settings = [sampling(shaping).sampling_settings() for shaping in SHAPINGS]
    assert [one["shaping"] for one in settings] == [
        [],
        [{"shaping": "UnfinishedScore", "score": -10.0}],
        [{"shaping": "UnfinishedScore", "score": 0}],
    ]
