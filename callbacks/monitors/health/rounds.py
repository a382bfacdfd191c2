"""Detectors that look at the answers of each round of on-policy sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from typing_extensions import override

from lion_lightning.callbacks.monitors.health.detector import Detector, Pairs, Sampled, Step
from lion_lightning.callbacks.monitors.health.findings import Finding
from lion_lightning.callbacks.monitors.health.pairs import TIED
from lion_lightning.printing import harmless
from lion_lightning.rollouts.rollout import Rollout


class LengthDrift(Detector):
    """Sampled answers that become much longer or shorter than those of the first round.

    Args:
        ratio: Mean tokens of a round's answers over those of the first round, or the other way round.
    """

    symptom = "length drift"
    advice = (
        "A judge that likes long (or short) answers teaches length, and so do pairs whose better answers are longer. "
        "Read answers with `lion rounds`; compare lengths of right and wrong ones, add a penalty (shaping), or use a "
        "loss that divides by length"
    )

    def __init__(self, ratio: float = 1.6) -> None:
        super().__init__()
        self.ratio = ratio

    @override
    def on_round(self, sampled: Sampled) -> Finding | None:
        lengths = [fmean(len(answer.token_ids or ()) for answer in each.sampled) for each in sampled.rollouts]
        change = self.since_first("tokens", lengths)
        if change is None or not min(change.start, change.now) > 0:
            return None
        ratio = max(change.now / change.start, change.start / change.now)
        if ratio < self.ratio or not change.is_sure():
            return None
        seen = (
            f"answers of round {sampled.number} are {'longer' if change.rise > 0 else 'shorter'} than those of the "
            f"first one, {change.now:.1f} tokens after {change.start:.1f} (limit {self.ratio:g} times)"
        )
        return self.finding(sampled.step, ratio, self.ratio, seen, severity=(ratio - 1) / (self.ratio - 1))


class Repetition(Detector):
    """Sampled answers that say the same over and over.

    Args:
        share: Share of a round's answers that may be repetitive, see :func:`is_repetitive`.
    """

    symptom = "repetition"
    advice = (
        "A policy far from where it started, a temperature near 0, or training answers without an end make loops. "
        "Lower the rate, raise beta, check that answers end with the end-of-turn token"
    )

    def __init__(self, share: float = 0.05) -> None:
        super().__init__()
        self.share = share

    @override
    def on_round(self, sampled: Sampled) -> Finding | None:
        shares = [fmean(is_repetitive(answer.token_ids or ()) for answer in each.sampled) for each in sampled.rollouts]
        share = fmean(shares)
        if share < self.share:
            return None
        seen = f"{share:.0%} of the answers of round {sampled.number} repeat themselves (limit {self.share:.0%})"
        rows = sampled.places([part > 0 for part in shares])
        return self.finding(sampled.step, share, self.share, seen, severity=share / self.share, rows=rows)


def is_repetitive(tokens: Sequence[int], times: int = 4, least: int = 8, longest: int = 64) -> bool:
    """True if an answer ends in a loop, or if half of its runs of four tokens come several times.

    Args:
        tokens: Of the answer; the last one may end it.
        times: Repetitions of the same tokens that make a loop.
        least: Tokens of a loop in all, at least.
        longest: Longest part that is looked for.
    """
    for end in (len(tokens), len(tokens) - 1):  # with the last token, which may end the turn, and without
        for size in range(1, min(longest, end // times) + 1):
            first = end - max(size * times, -(-least // size) * size)  # a multiple of the size
            if first >= 0 and tokens[first : end - size] == tokens[first + size : end]:
                return True
    runs = list(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))  # 4-grams
    return len(tokens) >= 4 * least and 2 * len(set(runs)) <= len(runs)


class Ties(Detector):
    """Prompts, or pairs of the data, from which nothing can be learned, since scores do not differ.

    Args:
        share: Share of a round's prompts, or of the pairs that the data has.
    """

    symptom = "ties"
    advice = (
        "Prompts that are too easy or too hard, a judge that does not tell answers apart, or a policy that always says "
        "the same. Look at scores with `lion rounds`; sample more answers at a higher temperature, choose prompts of "
        "medium difficulty (`dynamic`, `curriculum`), or a judge with finer scores"
    )

    def __init__(self, share: float = 0.9) -> None:
        super().__init__()
        self.share = share

    @override
    def on_pairs(self, pairs: Pairs) -> Finding | None:
        tied = sum(pairs.left_out.get(cause, 0) for cause in TIED)
        what = f"of {pairs.read:,} pairs of the data have equal scores and are left out"
        return self._finding(0, tied / max(pairs.read, 1), what, ())

    @override
    def on_round(self, sampled: Sampled) -> Finding | None:
        tied = [len({each.scores[place] for place in each.usable}) < 2 for each in sampled.rollouts]
        what = f"of the prompts of round {sampled.number} have no two answers with different scores"
        return self._finding(sampled.step, fmean(tied), what, sampled.places(tied))

    def _finding(self, step: int, share: float, what: str, rows: tuple[str, ...]) -> Finding | None:
        if share < self.share:
            return None
        seen = f"{share:.0%} {what} (limit {self.share:.0%})"
        return self.finding(step, share, self.share, seen, severity=share / self.share, rows=rows)


class EntropyCollapse(Detector):
    """A policy that becomes certain without being right.

    That is: many prompts with one answer alone, each time it is sampled, which is not one of the best; or one text in
    answer to many prompts; or an entropy (``entropy``, nats per token) that falls while ``rewards`` do not rise.

    Args:
        share: Share of a round's prompts with one answer that scores less than the best of the round.
        same: Rise, since the first round, of the share of the most common text among all answers.
        entropy: Entropy of the last steps over that of the first ones.
        window: Steps of each mean of the entropy.
    """

    symptom = "collapsed entropy"
    advice = (
        "Where nothing else is sampled, nothing better is found. Raise the temperature of the sampler or beta, lower "
        "the rate or the steps per round, or go back to an earlier checkpoint"
    )

    def __init__(self, share: float = 0.2, same: float = 0.2, entropy: float = 0.3, window: int = 10) -> None:
        super().__init__()
        self.share, self.same, self.entropy, self.window = share, same, entropy, window

    @override
    def on_step(self, step: Step) -> Finding | None:
        if not {"entropy", "rewards"} <= step.metrics.keys():
            return None
        entropy = self.since_start("entropy", step.metrics["entropy"], self.window)
        rewards = self.since_start("rewards", step.metrics["rewards"], self.window)
        # a policy that becomes right may well become certain
        if entropy is None or rewards is None or (rewards.rise > 0 and rewards.is_sure(2.0)):
            return None
        left = entropy.now / entropy.start if entropy.start > 0 else 1.0
        if left > self.entropy:
            return None
        seen = (
            f"the policy has {entropy.now:.3f} nats of entropy per token, after {entropy.start:.3f} in the first steps "
            f"(limit {self.entropy:.0%} of it), and rewards have not risen"
        )
        return self.finding(step.number, left, self.entropy, seen, severity=self.entropy / max(left, 1e-6))

    @override
    def on_round(self, sampled: Sampled) -> Finding | None:
        best = max(max(each.sampled_scores) for each in sampled.rollouts)
        stuck = [_is_one_answer(each) and max(each.sampled_scores) < best for each in sampled.rollouts]
        share = fmean(stuck)
        if share >= self.share:
            seen = (
                f"{share:.0%} of the prompts of round {sampled.number} have one answer alone, each time it is sampled, "
                f"and not one of the best score (limit {self.share:.0%})"
            )
            rows = sampled.places(stuck)
            return self.finding(sampled.step, share, self.share, seen, severity=share / self.share, rows=rows)
        return self._same_text(sampled)

    def _same_text(self, sampled: Sampled) -> Finding | None:
        texts = [[answer.text for answer in each.sampled] for each in sampled.rollouts]
        counts = Counter(text for group in texts for text in group)
        ((text, most),) = counts.most_common(1)
        share = most / counts.total()
        rise = share - self.memory.setdefault("same text", [share])[0]
        if rise < self.same:
            return None
        seen = (
            f"{share:.0%} of the answers of round {sampled.number} are the same text {harmless(text[:40])!r}, in the "
            f"first round {share - rise:.0%} (limit {self.same:.0%} more)"
        )
        rows = sampled.places([text in group for group in texts])
        return self.finding(sampled.step, rise, self.same, seen, severity=rise / self.same, rows=rows)


def _is_one_answer(rollout: Rollout) -> bool:
    """True if a prompt has several sampled answers, all of them the same."""
    return len(rollout.sampled) > 1 and len({answer.text for answer in rollout.sampled}) == 1
