"""Metrics of the answers of a round that a verifier says are right or wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from lion_lightning.rollouts.metrics.estimators import majority_at_k, pass_at_k
from lion_lightning.rollouts.rollout import Rollout


def verified_metrics(trained: Sequence[Rollout], monitors: Sequence[Rollout]) -> dict[str, float]:
    """Metrics of right and wrong answers; none where the judge does not say what is right.

    - ``pass_rate``: share of right answers; ``none_right``, ``all_right``: share of prompts.
    - ``length_right``, ``length_wrong``: mean tokens; ``unfinished_right``, ``unfinished_wrong``: share that was cut
      off. NaN where there is no such answer.
    - ``pass_at_1``, ``pass_at_2``, ``pass_at_4``, ...: of the monitor prompts (:func:`pass_at_k`), up to the number of
      answers to each; ``majority_at_4``, ...: :func:`majority_at_k`, which for k = 1 and 2 is ``pass_at_1``.
    """
    metrics: dict[str, float] = {}
    if rates := pass_rates(trained):
        metrics["none_right"] = fmean(rate == 0 for rate in rates)
        metrics["all_right"] = fmean(rate == 1 for rate in rates)
        lengths: dict[bool, list[int]] = {True: [], False: []}
        unfinished: dict[bool, list[bool]] = {True: [], False: []}
        for rollout in trained:
            for answer, is_right in zip(rollout.sampled, rollout.right, strict=False):  # the row's own answer follows
                lengths[is_right].append(len(answer.token_ids or ()))
                unfinished[is_right].append(answer.finish_reason == "length")
        metrics["pass_rate"] = len(lengths[True]) / (len(lengths[True]) + len(lengths[False]))
        for name, is_right in (("right", True), ("wrong", False)):
            metrics[f"length_{name}"] = mean(lengths[is_right])
            metrics[f"unfinished_{name}"] = mean(unfinished[is_right])
    return metrics | _of_monitors([rollout for rollout in monitors if rollout.right])


def pass_rates(rollouts: Iterable[Rollout]) -> list[float]:
    """Share of right ones among the sampled answers to each prompt; prompts without verified answers are left out."""
    return [fmean(rollout.right[: rollout.num_sampled]) for rollout in rollouts if rollout.right]


def _of_monitors(monitors: Sequence[Rollout]) -> dict[str, float]:
    """pass@k and majority@k for k = 1, 2, 4, ..., as far as each prompt has answers; means over the prompts."""
    metrics: dict[str, float] = {}
    most = min((rollout.num_sampled for rollout in monitors), default=0)
    counted = [2**power for power in range(most.bit_length())]  # up to `most`
    for k in counted:
        passes = []
        for rollout in monitors:
            right = rollout.right[: rollout.num_sampled]
            passes.append(pass_at_k(len(right), sum(right), k))
        metrics[f"pass_at_{k}"] = fmean(passes)
    majorities = []  # by prompt: for k = 1, 2, 3, ...
    for rollout in monitors:
        number = rollout.num_sampled
        if most >= 4:
            majorities.append(majority_at_k(rollout.final_answers[:number], rollout.right[:number], counted[-1]))
    if majorities:
        metrics |= {f"majority_at_{k}": fmean(found[k - 1] for found in majorities) for k in counted[2:]}
    return metrics


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are known; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan
