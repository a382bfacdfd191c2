"""Messages about rounds of on-policy sampling that give little or nothing to train on."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from lion_lightning.data.reports.source_report import SourceReport
from lion_lightning.data.selection.spans import FilterCounts
from lion_lightning.rollouts.rounds import Round

logger = logging.getLogger(__name__)

_MORE = (
    "ask more prompts per round (`dynamic` of OnPolicySampling asks on until enough answers differ), give more answers "
    "to each (num_samples), sample with more tokens, "
)
_CHECK = "check with `lion rounds` that the judge tells the answers apart"
FIXES = {
    "pairs": f"{_MORE}at a higher temperature, lower data.min_margin, or {_CHECK}",
    "groups": f"{_MORE}or {_CHECK}",
}
"""Advice for a round with too few pairs, or groups, to train on."""


_SHORTER = "lower num_samples of OnPolicySampling or the sampler's max_new_tokens"
FITTING = {
    "pairs": "lower data.max_length",
    "groups": f"{_SHORTER}; with longer rows alone the next start finds this round and trains on it",
}
"""Advice for prompts of a round that do not fit a row, other than longer rows."""


class NothingToTrainError(ValueError):
    """A round has nothing to train on.

    Args:
        problem: What is wrong with the round.
        fix: What to do about it.
    """

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}; {fix}")
        self.problem = problem


def nothing_to_train(finished: Round, reports: Sequence[SourceReport] = ()) -> str:
    """How many pairs or groups a round has, where none of them is trained, and why not.

    Args:
        finished: The round.
        reports: What the data module's filters did to its items.
    """
    items = finished.items
    left_out: Counter[str] = Counter()
    for report in reports:
        left_out.update({f"{report.noun}: {cause}": count.documents for cause, count in report.left_out.items()})
    left_out.update(f"prompts: {rollout.left_out}" for rollout in finished.rollouts if rollout.left_out)
    causes = ", ".join(f"{count} {cause}" for cause, count in left_out.most_common()) or "no prompt was left out"
    name = f"round {finished.number} ({finished.path})"
    return f"{name} gives no {items[:-1]} to train on: {finished.num_items} {items} of answers ({causes})"


def warn_of_ties(report: SourceReport) -> None:
    """Warn if most of a round's pairs, or of its answers in groups, say nothing of what is better."""
    causes = ("equal scores", "identical answers", "scores all equal")
    ties = sum(report.left_out.get(cause, FilterCounts()).documents for cause in causes)
    read = report.read.documents
    if 2 * ties > read:
        logger.warning(
            "%s: %d of %d %s are left out as ties or equal answers; %d %s are left. A judge with finer scores, "
            "or prompts that are neither too easy nor too hard, would give more",
            report.name,
            ties,
            read,
            report.noun,
            report.kept.documents,
            report.noun,
        )
