"""Detectors of rounds, on answers written by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from lion_lightning.callbacks.monitors.health import (
    Detector,
    EntropyCollapse,
    Finding,
    LengthDrift,
    Repetition,
    RewardHacking,
    Sampled,
    Step,
    Ties,
)
from lion_lightning.callbacks.monitors.health.rounds import is_repetitive
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.types import Answer, Prompt


def rollout(number: int, texts: Sequence[str], scores: Sequence[float], **more: Any) -> Rollout:
    """A prompt whose answers have a token for each letter."""
    answers = tuple(Answer(text, token_ids=tuple(map(ord, text))) for text in texts)
    prompt = Prompt(f"prompt {number}", where=f"p.jsonl:{number}")
    return Rollout(prompt, answers, scores=tuple(scores), usable=tuple(range(len(texts))), **more)


def sampled(number: int, *rollouts: Rollout) -> Sampled:
    return Sampled(10 * number, number, rollouts)


def found(detector: Detector, *rounds: Sampled) -> list[Finding]:
    return [finding for finding in map(detector.on_round, rounds) if finding]


def round_of(number: int, *texts: str) -> Sampled:
    """Prompts with two answers each, scored 0 and 1."""
    return sampled(number, *(rollout(place, [text, f"{text}."], [0.0, 1.0]) for place, text in enumerate(texts, 1)))


def test_answers_that_become_longer_or_shorter_than_the_first_ones_are_found() -> None:
    first, same, longer = (round_of(number, text, text) for number, text in enumerate(["abcd", "abcde", "abcdefghi"]))
    # Mean tokens 4.5, 5.5 and 9.5; there is no noise.
    (finding,) = found(LengthDrift(ratio=2.0), first, same, longer)
    assert finding.step == 20
    assert finding.value == pytest.approx(9.5 / 4.5)
    assert "round 2 are longer than those of the first one, 9.5 tokens after 4.5" in finding.seen
    assert "are shorter" in found(LengthDrift(ratio=2.0), longer, first)[0].seen


def test_a_change_of_length_within_the_noise_is_no_drift() -> None:
    # Means 6 and 3; by prompt 1 and 11, and 1 and 5: the standard error is the root of (25 + 4) / 2, which is 3.8.
    assert not found(
        LengthDrift(ratio=1.6),
        *(
            sampled(n, *(rollout(0, ["x" * size], [0.0]) for size in sizes))
            for n, sizes in enumerate([(1, 11), (1, 5)])
        ),
    )


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("abababab", True),
        ("so so so so ", True),
        ("xyaaaaaaaa", True),
        ("xyaaaaaaaaE", True),  # with a token that ends it
        ("aaaa", False),  # too short for a loop
        ("tako tako tako", False),  # three times
        ("abcdefgh", False),
        ("", False),
        ("one two. " * 3 + "one two? one two! one two, ", True),  # no loop at its end, but nearly all is said again
        ("the quick brown fox jumps over the lazy dog", False),
    ],
)
def test_what_repeats_itself(text: str, repeats: bool) -> None:
    assert is_repetitive(tuple(map(ord, text))) == repeats


def test_a_share_of_repetitive_answers_is_found_with_the_prompts() -> None:
    made = sampled(1, rollout(1, ["abc", "aaaaaaaa"], [0, 1]), rollout(2, ["abc", "abd"], [0, 1]))
    (finding,) = found(Repetition(share=0.25), made)
    assert (finding.value, finding.rows) == (0.25, ("p.jsonl:1",))
    assert not found(Repetition(share=0.3), made)


def test_prompts_without_a_difference_of_scores_are_ties() -> None:
    made = sampled(
        1,
        rollout(1, ["a", "b"], [1, 1]),
        rollout(2, ["a", "b"], [0, 1]),
        rollout(3, ["a", "b"], [0, 0]),
        rollout(4, ["a", "b"], [0.5, 0.5]),
    )
    (finding,) = found(Ties(share=0.75), made)
    assert (finding.value, finding.rows) == (0.75, ("p.jsonl:1", "p.jsonl:3", "p.jsonl:4"))
    assert not found(Ties(share=0.8), made)


def test_prompts_with_one_answer_that_is_not_the_best_are_a_collapse() -> None:
    certain_and_right = rollout(1, ["a", "a"], [1, 1])
    certain_and_wrong = rollout(2, ["b", "b"], [0, 0])
    open_ = rollout(3, ["c", "d"], [0, 1])
    made = sampled(1, certain_and_right, certain_and_wrong, open_, open_)
    (finding,) = found(EntropyCollapse(share=0.25), made)
    assert (finding.value, finding.rows) == (0.25, ("p.jsonl:2",))
    assert not found(EntropyCollapse(share=0.3), made)


def test_one_text_for_many_prompts_is_a_collapse_if_it_was_not_so_in_the_first_round() -> None:
    varied = round_of(0, "a", "b", "c", "d")  # 1 of 8 answers each
    alike = sampled(1, *(rollout(number, ["a", f"{number}"], [0, 1]) for number in range(4)))  # 4 of 8
    (finding,) = found(EntropyCollapse(same=0.3), varied, alike)
    assert finding.value == pytest.approx(0.375)
    assert "50% of the answers of round 1 are the same text 'a', in the first round 12%" in finding.seen
    assert not found(EntropyCollapse(same=0.3), alike, alike)


def entropies(*values: tuple[float, float]) -> list[Step]:
    metrics = [{"loss": 0.0, "entropy": entropy, "rewards": reward} for entropy, reward in values]
    return [Step(number, one) for number, one in enumerate(metrics, 1)]


def test_entropy_that_falls_while_rewards_do_not_rise_is_a_collapse() -> None:
    collapsing = entropies((1.0, 0.5), (1.0, 0.5), (0.2, 0.5), (0.2, 0.5))
    (finding,) = filter(None, map(EntropyCollapse(entropy=0.3, window=2).on_step, collapsing))
    assert finding.step == 4
    assert finding.value == pytest.approx(0.2)
    learning = entropies((1.0, 0.5), (1.0, 0.5), (0.2, 0.9), (0.2, 0.9))
    assert not any(map(EntropyCollapse(entropy=0.3, window=2).on_step, learning))
    assert not any(map(EntropyCollapse(entropy=0.1, window=2).on_step, collapsing))


def judged(number: int, scores: Sequence[float], right: Sequence[bool]) -> Sampled:
    """Prompts with an answer each."""
    pairs = enumerate(zip(scores, right, strict=True))
    return sampled(number, *(rollout(place, ["a"], [score], right=(is_right,)) for place, (score, is_right) in pairs))


FIRST = judged(0, [0.0] * 10 + [1.0] * 10, [True] * 10 + [False] * 10)


def test_a_score_that_rises_while_right_answers_become_fewer_is_hacking() -> None:
    # The score rises from 0.5 to 1. Right are 10 of 20, then 2: a fall of 0.4, of 0.8 standard deviations (0.5), and
    # of 3.06 standard errors, the root of (0.25 + 0.09) / 20.
    hacked = judged(1, [1.0] * 20, [True] * 2 + [False] * 18)
    (finding,) = found(RewardHacking(fall=0.3), FIRST, hacked)
    assert finding.value == pytest.approx(0.4)
    assert finding.severity == pytest.approx(0.8 / 0.3)
    assert "the score has risen from 0.5 to 1 in round 1, while the share of right answers fell from 0.5 to 0.1" in (
        finding.seen
    )
    assert not found(RewardHacking(fall=0.9), FIRST, hacked)


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(judged(1, [1.0] * 20, [True] * 15 + [False] * 5), id="both rise"),
        pytest.param(judged(1, [0.0] * 20, [True] * 2 + [False] * 18), id="both fall"),
        pytest.param(judged(1, [1.0] * 20, [True] * 7 + [False] * 13), id="a fall within the noise"),
    ],
)
def test_other_changes_of_scores_are_not_hacking(second: Sampled) -> None:
    assert not found(RewardHacking(fall=0.3), FIRST, second)


def test_a_part_of_the_score_that_falls_is_named() -> None:
    def parted(number: int, form: float, content: float) -> Sampled:
        parts = {"form": (form,), "content": (content,)}
        return sampled(number, *(rollout(place, ["a"], [form + content], by_judge=parts) for place in range(4)))

    (finding,) = found(RewardHacking(), parted(0, 0.0, 1.0), parted(1, 2.0, 0.5))
    assert "its part content fell from 1 to 0.5" in finding.seen
    assert finding.severity == math.inf  # it did not vary at all


def test_held_out_pairs_that_are_ranked_worse_and_a_large_divergence_are_hacking() -> None:
    better = judged(1, [1.0] * 20, [True] * 15 + [False] * 5)
    worse_held_out = RewardHacking(accuracy=0.1)
    worse_held_out.on_validation(0, {"rewards/accuracy": 0.8})
    worse_held_out.on_validation(10, {"rewards/accuracy": 0.6})
    (finding,) = found(worse_held_out, FIRST, better)
    assert finding.value == pytest.approx(0.2)
    far = RewardHacking(kl=1.0)
    far.on_step(Step(1, {"loss": 0.0, "kl": 15.0, "lengths": 10.0}))
    (finding,) = found(far, FIRST, better)
    assert "1.50 nats per token from its reference" in finding.seen
