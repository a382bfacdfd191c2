"""Metrics of a round: scores, win rate against the first round, lengths and diversity of its answers."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from statistics import fmean, pstdev

from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.rollouts.rounds import Round
from lion_lightning.types import Answer

MAX_SELF_BLEU_PROMPTS = 200
"""Prompts that ``self_bleu`` is computed on, drawn with a fixed seed: it compares every two answers, which is slow."""


def round_metrics(finished: Round) -> dict[str, float]:
    """Metrics of a round, by key; NaN where unknown.

    - ``score``: mean over all sampled answers; ``score_best``, ``score_worst``: over the best and worst of each prompt;
      ``score_spread``: standard deviation within a prompt's answers, mean over prompts. Pairs live from it.
    - ``monitor_score``: mean score of this round's answers to the monitor prompts; ``win_rate``: share of those prompts
      where they score above the first round's answers, ties half; 0.5 in the first round.
    - ``length``: tokens of an answer; ``unfinished``: share of answers that were cut off.
    - ``distinct_2``: share of different word pairs among those of a prompt's answers (Li et al., 2016, distinct-n): 1
      if nothing is said twice. ``self_bleu``: BLEU-4 of an answer against a prompt's other answers (Zhu et al., 2018,
      Self-BLEU): 1 if all answers are the same. Both are means over prompts.
    - ``prompts``, ``answers``, ``pairs`` and ``groups`` (prompts with two or more usable answers), both before the data
      module's filters; ``prompts_with_pairs`` (share).
    """
    trained = [rollout for rollout in finished.rollouts if not rollout.monitor]
    monitors = [rollout for rollout in finished.rollouts if rollout.monitor and rollout.scores]
    scored = list(filter(None, map(sampled_scores, trained)))  # per prompt
    answers = [sampled(rollout) for rollout in trained]  # per prompt
    texts, several = [], []
    for group in answers:
        texts.append([answer.text for answer in group])
        if len(group) > 1:
            several.append(texts[-1])
    drawn = random.Random(0).sample(several, min(MAX_SELF_BLEU_PROMPTS, len(several)))
    flat = list(chain.from_iterable(answers))
    return {
        "score": _mean(chain.from_iterable(scored)),
        "score_spread": _mean(map(pstdev, scored)),
        "score_best": _mean(map(max, scored)),
        "score_worst": _mean(map(min, scored)),
        "monitor_score": _mean(map(fmean, map(sampled_scores, monitors))),
        "win_rate": _mean(map(wins, monitors)),
        "length": _mean(float(len(answer.token_ids or ())) for answer in flat),
        "unfinished": _mean(float(answer.finish_reason == "length") for answer in flat),
        "distinct_2": _mean(map(distinct, texts)),
        "self_bleu": _mean(map(self_bleu, drawn)),
        "prompts": float(len(trained)),
        "answers": float(len(flat)),
        "pairs": float(finished.num_pairs),
        "prompts_with_pairs": _mean(float(bool(rollout.pairs)) for rollout in trained),
        "groups": float(finished.num_groups),
    }


def sampled(rollout: Rollout) -> list[Answer]:
    """Answers of the policy, without the row's own."""
    return list(rollout.answers[: rollout.num_sampled])


def sampled_scores(rollout: Rollout) -> list[float]:
    """Scores of these answers; empty before they are judged."""
    return list(rollout.scores[: rollout.num_sampled])


def wins(rollout: Rollout) -> float:
    """Share of a monitor prompt's new answers that score above the first round's, ties half; 0.5 in that round."""
    if not rollout.num_added:
        return 0.5
    first = rollout.scores[-1]
    return fmean(0.5 + 0.5 * ((own > first) - (own < first)) for own in sampled_scores(rollout))


def distinct(texts: Sequence[str], size: int = 2) -> float:
    """Share of different word n-grams among all of some texts; NaN if they have none."""
    grams: list[tuple[str, ...]] = []
    for text in texts:
        grams += _grams(text.split(), size)
    return len(set(grams)) / len(grams) if grams else math.nan


def self_bleu(texts: Sequence[str], longest: int = 4) -> float:
    """Mean BLEU of each text against the others; NaN for fewer than two texts, empty ones left out.

    Precisions of n-grams are counted with one more match and one more trial for n above 1 (Lin and Och, 2004), so that
    short texts have a value; a text has no n-grams longer than itself.
    """
    words = list(filter(None, map(str.split, texts)))
    if len(words) < 2:
        return math.nan
    return fmean(_bleu(words[i], words[:i] + words[i + 1 :], longest) for i in range(len(words)))


def _bleu(own: list[str], others: Sequence[list[str]], longest: int) -> float:
    logs = []  # of each precision
    for size in range(1, min(longest, len(own)) + 1):
        counts, most = Counter(_grams(own, size)), Counter[tuple[str, ...]]()
        for other in others:
            most |= Counter(_grams(other, size))
        matches = (counts & most).total()  # clipped, as in BLEU
        smooth = int(size > 1)
        if not matches + smooth:
            return 0.0
        logs.append(math.log((matches + smooth) / (counts.total() + smooth)))
    nearest = min((len(other) for other in others), key=lambda length: (abs(length - len(own)), length))
    brevity = min(0.0, 1 - nearest / len(own))
    return math.exp(fmean(logs) + brevity)


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan
