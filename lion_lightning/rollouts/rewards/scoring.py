"""Scores of the answers of a round: the judge's, then the shapings'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

from lion_lightning.errors import first_line
from lion_lightning.judges.base import Judge, final_answers, score_answers
from lion_lightning.judges.verifiers.columns import place_of
from lion_lightning.rollouts.rewards.shaping import RewardShaping
from lion_lightning.rollouts.rollout import Rollout


@dataclass(frozen=True)
class Scoring:
    """A judge, and what makes rewards of its scores.

    Attributes:
        judge: Scores the answers to a prompt.
        shaping: Applied to the scores, in this order.
    """

    judge: Judge
    shaping: Sequence[RewardShaping] = ()

    def score(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Add the scores of all answers, with their parts.

        Raises:
            ValueError: The judge failed, or a score is not finite; the message names judge or shaping, and prompt.
        """
        texts = [[answer.text for answer in rollout.answers] for rollout in rollouts]
        judged = score_answers(self.judge, [rollout.prompt for rollout in rollouts], texts)
        scored = []
        for number, rollout in enumerate(rollouts):
            by_judge = {name: tuple(scores[number]) for name, scores in judged.by_judge.items()}
            right = tuple(judged.right[number]) if judged.right else ()
            rollout = replace(rollout, scores=tuple(judged.scores[number]), by_judge=by_judge, right=right)
            scored.append(self._shaped(self._with_final_answers(rollout)))
        return scored

    def _with_final_answers(self, rollout: Rollout) -> Rollout:
        """Add what the answers come to, where a majority of them is counted."""
        if not (rollout.monitor and rollout.right and rollout.num_sampled > 1):
            return rollout
        texts = [answer.text for answer in rollout.answers]
        return replace(rollout, final_answers=tuple(final_answers(self.judge, rollout.prompt, texts)))

    def _shaped(self, rollout: Rollout) -> Rollout:
        """Apply the shapings to all answers; the difference that each makes is a separate part."""
        scores, parts = rollout.scores, dict(rollout.by_judge)
        for shaping in self.shaping:
            before, name, place = scores, type(shaping).__name__, place_of(rollout.prompt)
            try:
                scores = tuple(map(shaping.shape, rollout.answers, before))
            except Exception as error:
                cause = first_line(error, with_type=True)
                raise ValueError(f"{place}: {name} failed ({cause}); fix the shaping and rerun") from error
            if not all(isinstance(score, Real) and math.isfinite(score) for score in scores):
                raise ValueError(f"{name} made {scores} of the scores {before} of {place}; return finite numbers")
            if name in parts:
                raise ValueError(f"a judge and a shaping are both called {name}; change `names` of WeightedJudge")
            parts[name] = tuple(after - score for after, score in zip(scores, before, strict=True))
        return replace(rollout, scores=scores, by_judge=parts)
