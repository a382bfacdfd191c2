"""Metrics of the answers of a round that a verifier says are right or wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from lion_lightning.rollouts.metrics.estimators import majority_at_k, pass_at_k
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.types import Answer


def verified_metrics(trained: Sequence[Rollout], monitors: Sequence[Rollout]) -> dict[str, float]:
    """Metrics of right and wrong answers; none where the judge does not say what is right.

    - ``pass_rate``: share of a prompt's answers that is right, mean over prompts; ``none_right``, ``all_right``: share
      of prompts of which none or all are.
    - ``length_right``, ``length_wrong``: mean tokens; ``unfinished_right``, ``unfinished_wrong``: share that was cut
      off. NaN where there is no such answer.
    - ``pass_at_1``, ``pass_at_2``, ``pass_at_4``, ...: of the monitor prompts (:func:`pass_at_k`), up to the number of
      answers to each; ``majority_at_4``, ...: :func:`majority_at_k`, which for k = 1 and 2 is ``pass_at_1``.
    """
    metrics = _by_prompt(trained) | _by_answer(trained) if any(rollout.right for rollout in trained) else {}
    return metrics | _of_monitors([rollout for rollout in monitors if rollout.right])


def pass_rates(rollouts: Iterable[Rollout]) -> list[float]:
    """Share of right ones among the sampled answers to each prompt; prompts without verified answers are left out."""
    return [fmean(rollout.sampled_right) for rollout in rollouts if rollout.right]


def _by_prompt(rollouts: Sequence[Rollout]) -> dict[str, float]:
    rates = pass_rates(rollouts)
    return {
        "pass_rate": fmean(rates),
        "none_right": fmean(rate == 0 for rate in rates),
        "all_right": fmean(rate == 1 for rate in rates),
    }


def _by_answer(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Lengths, and shares that were cut off, of right answers and of wrong ones."""
    answers: dict[bool, list[Answer]] = {True: [], False: []}
    for rollout in rollouts:
        for answer, is_right in zip(rollout.sampled, rollout.sampled_right, strict=False):
            answers[is_right].append(answer)
    metrics = {}
    for name, found in (("right", answers[True]), ("wrong", answers[False])):
        metrics[f"length_{name}"] = mean(float(len(answer.token_ids or ())) for answer in found)
        metrics[f"unfinished_{name}"] = mean(float(answer.finish_reason == "length") for answer in found)
    return metrics


def _of_monitors(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """pass@k and majority@k for k = 1, 2, 4, ..., as far as each prompt has answers; means over the prompts."""
    most = min((rollout.num_sampled for rollout in rollouts), default=0)
    counted = [2**power for power in range(most.bit_length())]  # up to `most`
    metrics: dict[str, float] = {}
    for k in counted:
        right = [rollout.sampled_right for rollout in rollouts]
        metrics[f"pass_at_{k}"] = fmean(pass_at_k(len(found), sum(found), k) for found in right)
    majorities = []  # by prompt: for k = 1, 2, 3, ...
    for rollout in rollouts:
        finals = rollout.final_answers[: rollout.num_sampled]
        if most >= 4 and finals:  # of two answers a tie is drawn, which is pass@1
            majorities.append(majority_at_k(finals, rollout.sampled_right, counted[-1]))
    if not majorities:
        return metrics
    return metrics | {f"majority_at_{k}": fmean(found[k - 1] for found in majorities) for k in counted[2:]}


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are known; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan
