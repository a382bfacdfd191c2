"""Metrics of a round: scores and their parts, right answers, win rate against the first round, lengths, diversity."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean, pstdev
from typing import Any

from lion_lightning.rollouts.metrics.diversity import distinct, self_bleu
from lion_lightning.rollouts.metrics.verified import mean, verified_metrics
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.rollouts.rounds import Round, kept_metrics

MAX_SELF_BLEU_PROMPTS, MAX_SELF_BLEU_ANSWERS = 200, 8
"""Prompts that ``self_bleu`` is computed on, drawn with a fixed seed, and the first answers of each: every two are
compared, which takes seconds for 64 of them, and BLEU is the higher the more there are."""

ONLY_IN_SUMMARY = {"score_best", "score_worst", "self_bleu", "answers", "prompts_with_pairs"}
"""Metrics of a round that are not logged as ``on_policy/*``; all of them are in the round's summary."""


def round_metrics(finished: Round) -> dict[str, float]:
    """Metrics of a round, by key; NaN where unknown.

    - ``score``: mean over all sampled answers; ``score_best``, ``score_worst``: over the best and worst of each prompt;
      ``score_spread``: standard deviation within a prompt's answers, mean over prompts. Pairs live from it.
      ``prompts_with_signal``: share of those with two usable answers in which the scores of such answers differ.
    - ``reward/<part>``: mean over all sampled answers of what each judge and each shaping gave, where there are
      several.
      ``not_rated/<part>``: number of answers that a judge had no rating of, where there are any.
    - ``monitor_score``: mean score of this round's answers to the monitor prompts; ``win_rate``: share of these answers
      that score above the first round's, ties half; 0.5 in the first round.
    - ``length``: tokens of an answer; ``unfinished``: share of answers that were cut off.
    - ``distinct_2``: share of different word pairs among those of a prompt's answers (Li et al., 2016, distinct-n): 1
      if nothing is said twice. ``self_bleu``: BLEU-4 of an answer against a prompt's other answers (Zhu et al., 2018,
      Self-BLEU): 1 if all answers are the same. Both are means over prompts.
    - ``prompts``, ``answers``, ``pairs`` and ``groups`` (prompts with two or more usable answers), both before the data
      module's filters; ``prompts_with_pairs`` (share). With dynamic sampling ``waves``, in which they were asked.
    - Those of :func:`verified_metrics`, where the judge says what is right.
    """
    trained = [rollout for rollout in finished.rollouts if not rollout.monitor]
    monitors = [rollout for rollout in finished.rollouts if rollout.monitor and rollout.scores]
    scored = [rollout.sampled_scores for rollout in trained if rollout.scores]
    texts = [[answer.text for answer in rollout.sampled] for rollout in trained]
    several = [group for group in texts if len(group) > 1]
    # The same number of prompts in each round, so that rounds compare.
    drawn = random.Random(0).sample(several, min(MAX_SELF_BLEU_PROMPTS, len(several)))
    answers = list(chain.from_iterable(rollout.sampled for rollout in trained))
    return {
        "score": mean(chain.from_iterable(scored)),
        "score_spread": mean(map(pstdev, scored)),
        "score_best": mean(map(max, scored)),
        "score_worst": mean(map(min, scored)),
        "prompts_with_signal": mean(_signals(trained)),
        **_parts(trained),
        "monitor_score": mean(fmean(rollout.sampled_scores) for rollout in monitors),
        "win_rate": mean(map(wins, monitors)),
        "length": mean(float(len(answer.token_ids or ())) for answer in answers),
        "unfinished": mean(float(answer.finish_reason == "length") for answer in answers),
        "distinct_2": mean(map(distinct, texts)),
        "self_bleu": mean(self_bleu(group[:MAX_SELF_BLEU_ANSWERS]) for group in drawn),
        "prompts": float(len(trained)),
        "answers": float(len(answers)),
        "pairs": float(finished.num_pairs),
        "prompts_with_pairs": mean(float(bool(rollout.pairs)) for rollout in trained),
        "groups": float(finished.num_groups),
        **({"waves": float(len(finished.metadata["waves"]))} if finished.metadata.get("dynamic") else {}),
        **verified_metrics(trained, monitors),
    }


def epoch_metrics(finished: Round, report: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a round with the share that the data module's filters kept of it.

    Args:
        finished: The round.
        report: The data module's report on it.
    """
    metrics = round_metrics(finished)
    return metrics | kept_metrics(report, finished.items, metrics[finished.items])


def logged_metrics(metrics: Mapping[str, float], items: str) -> dict[str, float]:
    """Those of a round's metrics that are logged as ``on_policy/*``: not the number of pairs where groups are trained.

    Args:
        metrics: All metrics.
        items: What is trained, ``pairs`` or ``groups``.
    """
    others = {"pairs", "groups"} - {items}
    return {name: value for name, value in metrics.items() if name not in ONLY_IN_SUMMARY | others}


def wins(rollout: Rollout) -> float:
    """Share of a monitor prompt's new answers that score above the first round's, ties half; 0.5 in that round."""
    if not rollout.num_added:
        return 0.5
    first = rollout.scores[-1]
    return fmean(0.5 + 0.5 * ((own > first) - (own < first)) for own in rollout.sampled_scores)


def _signals(rollouts: Sequence[Rollout]) -> list[float]:
    """1 for each prompt whose usable answers differ in score, 0 for others with two of them."""
    signals = []
    for rollout in rollouts:
        scores = [rollout.scores[position] for position in rollout.usable]
        if len(scores) > 1:
            signals.append(float(min(scores) < max(scores)))
    return signals


def _parts(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Mean of each part of the score over all sampled answers; none where the score is one part."""
    parts: dict[str, list[float]] = {}
    for rollout in rollouts:
        for name, scores in rollout.by_judge.items():
            parts.setdefault(name, []).extend(scores[: rollout.num_sampled])
    if len(parts) < 2:  # the score itself
        return {}
    missing = {name: sum(map(math.isnan, scores)) for name, scores in parts.items()}
    return {
        **{f"reward/{name}": mean(scores) for name, scores in parts.items()},
        **{f"not_rated/{name}": float(count) for name, count in missing.items() if count},
    }
